"""Tables, figures and the report: everything that is computed from stored tables, on a CPU.

REQUIRED INPUTS: probe tables, annotations and responses of every run.
OUTPUTS: results/{experiment}/tables/, results/{experiment}/figures/ and results/{experiment}/report.html.
"""

# What a table or figure must know of the runs, by name.
DESCRIBED = {
    name: {"objective": run.objective, "family": run.family, "parameters": run.parameters} for (_, name), run in RUNS.items()
}


TABLES = expand(
    f"results/{config['experiment']}/tables/{{table}}",
    table=["dynamics.parquet", "advantages.parquet", "prediction.parquet", "win_rates.csv", "results.csv"],
)


rule tabulate_dynamics:
    input:
        probes=probed(),
    output:
        dynamics="results/{experiment}/tables/dynamics.parquet",
        advantages="results/{experiment}/tables/advantages.parquet",
        weights="results/{experiment}/tables/weights.parquet",
        logps="results/{experiment}/tables/logps.parquet",
        entanglement="results/{experiment}/tables/entanglement.parquet",
        prediction="results/{experiment}/tables/prediction.parquet",
        rank_correlation="results/{experiment}/tables/rank_correlation.parquet",
        provenance="results/{experiment}/tables/dynamics.parquet.json",
    log:
        "results/{experiment}/logs/tabulate_dynamics.log",
    conda:
        "../../envs/plot.yaml"
    params:
        code=code("tabulate_dynamics.py"),
    script:
        "../scripts/tabulate_dynamics.py"


rule tabulate_win_rates:
    input:
        annotations=evaluated("annotations"),
        responses=evaluated("responses"),
    output:
        win_rates="results/{experiment}/tables/win_rates.csv",
        results="results/{experiment}/tables/results.csv",
        provenance="results/{experiment}/tables/win_rates.csv.json",
    log:
        "results/{experiment}/logs/tabulate_win_rates.log",
    conda:
        "../../envs/plot.yaml"
    params:
        code=code("tabulate_win_rates.py"),
        judge=config["evaluation"]["judge"],
        runs=DESCRIBED,
    script:
        "../scripts/tabulate_win_rates.py"


rule draw_dynamics:
    input:
        dynamics=artefact("results/{experiment}/tables/dynamics.parquet"),
    output:
        figure="results/{experiment}/figures/{model}/figure_{number}_{run}.png",
        vector="results/{experiment}/figures/{model}/figure_{number}_{run}.pdf",
        provenance="results/{experiment}/figures/{model}/figure_{number}_{run}.png.json",
    log:
        "results/{experiment}/logs/{model}/draw_figure_{number}_{run}.log",
    wildcard_constraints:
        number="1|2|7",
    conda:
        "../../envs/plot.yaml"
    params:
        code=code("draw_dynamics.py"),
        final_set=lambda wildcards: "train" if wildcards.number == "7" else "heldout",
        runs=lambda wildcards: {wildcards.run: DESCRIBED[wildcards.run]},
    script:
        "../scripts/draw_dynamics.py"


rule draw_advantages:
    input:
        dynamics=artefact("results/{experiment}/tables/dynamics.parquet"),
        advantages="results/{experiment}/tables/advantages.parquet",
    output:
        figure="results/{experiment}/figures/{model}/figure_3_{run}.png",
        vector="results/{experiment}/figures/{model}/figure_3_{run}.pdf",
        provenance="results/{experiment}/figures/{model}/figure_3_{run}.png.json",
    log:
        "results/{experiment}/logs/{model}/draw_figure_3_{run}.log",
    conda:
        "../../envs/plot.yaml"
    params:
        code=code("draw_advantages.py"),
        runs=lambda wildcards: {wildcards.run: DESCRIBED[wildcards.run]},
    script:
        "../scripts/draw_advantages.py"


rule draw_prediction:
    input:
        dynamics=artefact("results/{experiment}/tables/dynamics.parquet"),
        prediction="results/{experiment}/tables/prediction.parquet",
        rank_correlation="results/{experiment}/tables/rank_correlation.parquet",
    output:
        figure="results/{experiment}/figures/{model}/prediction_{run}.png",
        vector="results/{experiment}/figures/{model}/prediction_{run}.pdf",
        provenance="results/{experiment}/figures/{model}/prediction_{run}.png.json",
    log:
        "results/{experiment}/logs/{model}/draw_prediction_{run}.log",
    conda:
        "../../envs/plot.yaml"
    params:
        code=code("draw_prediction.py"),
        runs=lambda wildcards: {wildcards.run: DESCRIBED[wildcards.run]},
    script:
        "../scripts/draw_prediction.py"


rule draw_win_rates:
    input:
        win_rates=artefact("results/{experiment}/tables/win_rates.csv"),
    output:
        figure="results/{experiment}/figures/{model}/figure_4.png",
        vector="results/{experiment}/figures/{model}/figure_4.pdf",
        provenance="results/{experiment}/figures/{model}/figure_4.png.json",
    log:
        "results/{experiment}/logs/{model}/draw_figure_4.log",
    conda:
        "../../envs/plot.yaml"
    params:
        code=code("draw_win_rates.py"),
        runs=DESCRIBED,
    script:
        "../scripts/draw_win_rates.py"


rule draw_training:
    input:
        curves=lambda wildcards: [
            f"results/{wildcards.experiment}/{wildcards.model}/{wildcards.run}/seed{seed}/training.csv"
            for seed in run_of(wildcards).seeds
        ],
    output:
        figure="results/{experiment}/figures/{model}/training_{run}.png",
        vector="results/{experiment}/figures/{model}/training_{run}.pdf",
        provenance="results/{experiment}/figures/{model}/training_{run}.png.json",
    log:
        "results/{experiment}/logs/{model}/draw_training_{run}.log",
    conda:
        "../../envs/plot.yaml"
    params:
        code=code("draw_training.py"),
        runs=lambda wildcards: {wildcards.run: DESCRIBED[wildcards.run]},
        seeds=lambda wildcards: run_of(wildcards).seeds,
    script:
        "../scripts/draw_training.py"


rule write_report:
    input:
        template="workflow/report/report.html.j2",
        figures=figure_files,
        records=lambda wildcards: [f"{path}.json" for path in figure_files(wildcards)],
        win_rates="results/{experiment}/tables/win_rates.csv",
        results="results/{experiment}/tables/results.csv",
        dynamics=artefact("results/{experiment}/tables/dynamics.parquet"),
    output:
        report="results/{experiment}/report.html",
        provenance="results/{experiment}/report.html.json",
    log:
        "results/{experiment}/logs/write_report.log",
    conda:
        "../../envs/plot.yaml"
    params:
        code=code("write_report.py"),
        runs=DESCRIBED,
        config={key: value for key, value in config.items() if not key.startswith("x-")},
    script:
        "../scripts/write_report.py"

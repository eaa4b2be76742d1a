"""Tables, figures and the report: everything that is computed from stored tables, on a CPU.

REQUIRED INPUTS: probe tables, annotations and responses of every run.
OUTPUTS: tables/, figures/, config.yaml (the configuration with every default) and report.html.
"""

DYNAMICS = f"{layout.TABLES}/dynamics.parquet"
WIN_RATES = f"{layout.TABLES}/win_rates.csv"
# The experiment's tables that are asked for by name.
TABLES = [
    of_experiment(f"{layout.TABLES}/{table}")
    for table in ("dynamics.parquet", "advantages.parquet", "prediction.parquet", "win_rates.csv", "results.csv")
]


def described(run):
    """What a table or figure must know of a run."""
    about = objective(run)
    return {"objective": about["name"], "family": run.family, "parameters": about["parameters"]}


# Functions that draw; the inputs of a rule are named as the arguments of its function.
DRAW = {
    "dynamics": "po_dynamics.figures.alignment:draw_alignment",
    "advantages": "po_dynamics.figures.alignment:draw_advantages",
    "prediction": "po_dynamics.figures.alignment:draw_prediction",
    "win_rates": "po_dynamics.figures.win_rates:draw_win_rates",
    "training": "po_dynamics.figures.training:draw_training",
}

DESCRIBED = {name: described(run) for (_, name), run in RUNS.items()}


def of_this_run(wildcards):
    """What the figure of one run is told."""
    return {"run": wildcards.run, "runs": {wildcards.run: DESCRIBED[wildcards.run]}}


def curves(wildcards):
    """Training curves of a run, one file per seed."""
    return [layout.CURVES.replace("{seed}", str(seed)) for seed in run_of(wildcards).seeds]


def tabulated(**tables):
    """Tables that `tabulate_dynamics` wrote as named inputs, with their one record."""
    paths = {name: ancient(f"{layout.TABLES}/{table}.parquet") for name, table in tables.items()}
    return lambda wildcards: paths | {"tables_record": layout.record(DYNAMICS)}


def figure(name):
    """The files of a figure, as named outputs."""
    return multiext(f"{layout.FIGURES}/{name}", figure=".png", vector=".pdf", provenance=".png.json")


rule write_config:
    output:
        config=layout.CONFIGURATION,
    log:
        f"{layout.LOGS}/write_config.log",
    localrule: True
    conda:
        "../../envs/plot.yaml"
    params:
        code=code("write_config.py"),
        config={key: value for key, value in CONFIG.items() if not key.startswith("x-")},
    script:
        "../scripts/write_config.py"


rule tabulate_dynamics:
    input:
        unpack(artefacts(probes=probed)),
    output:
        dynamics=DYNAMICS,
        advantages=f"{layout.TABLES}/advantages.parquet",
        weights=f"{layout.TABLES}/weights.parquet",
        logps=f"{layout.TABLES}/logps.parquet",
        entanglement=f"{layout.TABLES}/entanglement.parquet",
        prediction=f"{layout.TABLES}/prediction.parquet",
        rank_correlation=f"{layout.TABLES}/rank_correlation.parquet",
        provenance=layout.record(DYNAMICS),
    log:
        f"{layout.LOGS}/tabulate_dynamics.log",
    conda:
        "../../envs/plot.yaml"
    params:
        code=code("tabulate_dynamics.py"),
    script:
        "../scripts/tabulate_dynamics.py"


rule tabulate_win_rates:
    input:
        unpack(artefacts(annotations=evaluated(layout.ANNOTATIONS), responses=evaluated(layout.RESPONSES))),
    output:
        win_rates=WIN_RATES,
        results=f"{layout.TABLES}/results.csv",
        provenance=layout.record(WIN_RATES),
    log:
        f"{layout.LOGS}/tabulate_win_rates.log",
    conda:
        "../../envs/plot.yaml"
    params:
        code=code("tabulate_win_rates.py"),
        judge=CONFIG["evaluation"]["judge"],
        runs=DESCRIBED,
    script:
        "../scripts/tabulate_win_rates.py"


rule draw_dynamics:
    input:
        unpack(tabulated(dynamics="dynamics")),
    output:
        figure("figure_{number}_{run}"),
    log:
        f"{layout.MODEL_LOGS}/draw_figure_{{number}}_{{run}}.log",
    wildcard_constraints:
        number="1|2|7",
    conda:
        "../../envs/plot.yaml"
    params:
        code=code("draw.py", DRAW["dynamics"]),
        function=DRAW["dynamics"],
        arguments=lambda wildcards: (
            of_this_run(wildcards) | {"final_set": "train" if wildcards.number == "7" else "heldout"}
        ),
    script:
        "../scripts/draw.py"


use rule draw_dynamics as draw_advantages with:
    input:
        unpack(tabulated(advantages="advantages")),
    output:
        figure("figure_3_{run}"),
    log:
        f"{layout.MODEL_LOGS}/draw_figure_3_{{run}}.log",
    params:
        code=code("draw.py", DRAW["advantages"]),
        function=DRAW["advantages"],
        arguments=of_this_run,


use rule draw_dynamics as draw_prediction with:
    input:
        unpack(tabulated(prediction="prediction", correlations="rank_correlation")),
    output:
        figure("prediction_{run}"),
    log:
        f"{layout.MODEL_LOGS}/draw_prediction_{{run}}.log",
    params:
        code=code("draw.py", DRAW["prediction"]),
        function=DRAW["prediction"],
        arguments=of_this_run,


use rule draw_dynamics as draw_win_rates with:
    input:
        unpack(artefacts(win_rates=WIN_RATES)),
    output:
        figure("figure_4"),
    log:
        f"{layout.MODEL_LOGS}/draw_figure_4.log",
    params:
        code=code("draw.py", DRAW["win_rates"]),
        function=DRAW["win_rates"],
        arguments={"runs": DESCRIBED},


use rule draw_dynamics as draw_training with:
    input:
        curves=curves,
    output:
        figure("training_{run}"),
    log:
        f"{layout.MODEL_LOGS}/draw_training_{{run}}.log",
    params:
        code=code("draw.py", DRAW["training"]),
        function=DRAW["training"],
        arguments=of_this_run,


rule write_report:
    input:
        unpack(artefacts(figures=figure_files)),
        template="workflow/report/report.html.j2",
        win_rates=WIN_RATES,
        results=f"{layout.TABLES}/results.csv",
        win_rates_record=layout.record(WIN_RATES),
        dynamics=ancient(DYNAMICS),
        dynamics_record=layout.record(DYNAMICS),
        config=layout.CONFIGURATION,
    output:
        report=layout.REPORT,
        provenance=layout.record(layout.REPORT),
    log:
        f"{layout.LOGS}/write_report.log",
    conda:
        "../../envs/plot.yaml"
    params:
        code=code("write_report.py"),
        runs=DESCRIBED,
    script:
        "../scripts/write_report.py"

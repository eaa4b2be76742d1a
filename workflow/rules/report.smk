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
] + [of_experiment(table) for table in DATA_TABLES.values()]
DESCRIBED = {name: described(run) for (_, name), run in RUNS.items()}


CARD_SHOWN = {"judge_card": f"{layout.TABLES}/judge_card.csv"} if CONFIG["evaluation"]["report_card"] else {}


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
        curves=[
            of_experiment(layout.CURVES, model=model, run=run, seed=seed) for model, run, seed in seeds(probed=True)
        ],
    output:
        dynamics=DYNAMICS,
        advantages=f"{layout.TABLES}/advantages.parquet",
        weights=f"{layout.TABLES}/weights.parquet",
        logps=f"{layout.TABLES}/logps.parquet",
        entanglement=f"{layout.TABLES}/entanglement.parquet",
        prediction=f"{layout.TABLES}/prediction.parquet",
        prediction_tests=f"{layout.TABLES}/prediction_tests.parquet",
        token_prediction=f"{layout.TABLES}/token_prediction.parquet",
        token_bins=f"{layout.TABLES}/token_bins.parquet",
        resolution=f"{layout.TABLES}/resolution.csv",
        displacement=f"{layout.TABLES}/displacement.csv",
        displacement_check=f"{layout.TABLES}/displacement_check.csv",
        provenance=layout.record(DYNAMICS),
    log:
        f"{layout.LOGS}/tabulate_dynamics.log",
    conda:
        "../../envs/plot.yaml"
    params:
        code=code("tabulate_dynamics.py"),
        learning={f"{model}/{name}": learning(run) for (model, name), run in RUNS.items() if run.final_sets},
    script:
        "../scripts/tabulate_dynamics.py"


rule tabulate_win_rates:
    input:
        unpack(
            artefacts(
                annotations=evaluated(layout.ANNOTATIONS),
                responses=evaluated(layout.RESPONSES),
                baselines=baselines(),
            )
        ),
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


rule draw_figure:
    input:
        unpack(drawn_from),
    output:
        multiext(f"{layout.FIGURES}/{{figure}}", figure=".png", vector=".pdf", provenance=".png.json"),
    log:
        f"{layout.MODEL_LOGS}/draw_{{figure}}.log",
    wildcard_constraints:
        figure=names(sorted({figure for _, figure in DRAWINGS})),
    conda:
        "../../envs/plot.yaml"
    params:
        code=lambda wildcards: fingerprint_once(WORKFLOW / "scripts" / "draw.py", drawing(wildcards).function),
        function=lambda wildcards: drawing(wildcards).function,
        arguments=told,
    script:
        "../scripts/draw.py"


rule write_report:
    input:
        unpack(artefacts(figures=figure_files)),
        **BANDIT_SHOWN,
        **{f"data_{name}": table for name, table in DATA_TABLES.items()},
        **TARGET_SHOWN,
        **CARD_SHOWN,
        template="workflow/report/report.html.j2",
        win_rates=WIN_RATES,
        results=f"{layout.TABLES}/results.csv",
        win_rates_record=layout.record(WIN_RATES),
        dynamics=ancient(DYNAMICS),
        dynamics_record=layout.record(DYNAMICS),
        resolution=ancient(f"{layout.TABLES}/resolution.csv"),
        displacement=ancient(f"{layout.TABLES}/displacement.csv"),
        displacement_check=ancient(f"{layout.TABLES}/displacement_check.csv"),
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

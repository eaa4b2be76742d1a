"""The exact bandit: the objectives where target, expectations and gradients are known. It reads no other stage.

REQUIRED INPUTS: none.
OUTPUTS: tables/bandit*.csv and figures/bandit.{png,pdf}, where the configuration has a section `bandit`.
"""

BANDIT = [f"{layout.TABLES}/bandit{part}.csv" for part in ("", "_law", "_samples", "_alignment", "_signs")]
BANDIT_CLAIMS = f"{layout.TABLES}/bandit_claims.csv"
BANDIT_RECORD = layout.record(BANDIT[0])
BANDIT_PAGE = f"{layout.BANDIT_FIGURE}.png"
DRAW_BANDIT = "po_dynamics.figures.plots.bandit:draw_bandit"

# What the experiment is asked for, and what of it the report shows; nothing where the configuration has no bandit.
BANDIT_FILES, BANDIT_SHOWN = [], {}

if CONFIG["bandit"]:
    BANDIT_FILES = list(map(of_experiment, [*BANDIT, BANDIT_CLAIMS, BANDIT_PAGE]))
    BANDIT_SHOWN = {
        "bandit_figure": ancient(BANDIT_PAGE),
        "bandit_law": ancient(BANDIT[1]),
        "bandit_claims": ancient(BANDIT_CLAIMS),
        "bandit_record": [BANDIT_RECORD, layout.record(BANDIT_PAGE)],
    }

    rule run_bandit:
        output:
            tables=BANDIT,
            ends=f"{layout.TABLES}/bandit_ends.csv",
            claims=BANDIT_CLAIMS,
            provenance=BANDIT_RECORD,
        log:
            f"{layout.LOGS}/run_bandit.log",
        conda:
            "../../envs/train.yaml"
        params:
            code=code("run_bandit.py"),
            settings=CONFIG["bandit"],
        script:
            "../scripts/run_bandit.py"

    rule draw_bandit:
        input:
            **{Path(table).stem: ancient(table) for table in BANDIT},
            tables_record=BANDIT_RECORD,
        output:
            multiext(layout.BANDIT_FIGURE, figure=".png", vector=".pdf", provenance=".png.json"),
        log:
            f"{layout.LOGS}/draw_bandit.log",
        conda:
            "../../envs/plot.yaml"
        params:
            code=code("draw.py", DRAW_BANDIT),
            function=DRAW_BANDIT,
            arguments={"tau": CONFIG["bandit"]["temperature"]},
        script:
            "../scripts/draw.py"

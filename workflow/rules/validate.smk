"""G against retraining: intervals without a component, and trainings on random halves of the preference pairs.

REQUIRED INPUTS: checkpoints/, final_responses/heldout.parquet and probe/heldout/ of the runs that are validated.
OUTPUTS: tables/validation_{effects,agreement,halves,scores}.csv and figures/validation_{components,halves}.{png,pdf},
where the configuration has a section `validation`.
"""

VALIDATION = {name: f"{layout.TABLES}/validation_{name}.csv" for name in ("effects", "agreement", "halves", "scores")}
VALIDATION_DRAWN = {"components": ["effects", "agreement"], "halves": ["halves", "scores"]}
DRAW_VALIDATION = "po_dynamics.figures.plots.checks.validation:draw_"
# What the experiment is asked for; nothing where the configuration validates nothing.
VALIDATION_FILES = []

if CONFIG["validation"]:
    VALIDATION_FILES = [
        *map(of_experiment, VALIDATION.values()),
        *(of_experiment(f"{layout.VALIDATION_FIGURES}.png", figure=figure) for figure in VALIDATION_DRAWN),
    ]

    rule validate:
        input:
            VALIDATION_FILES,
        localrule: True

    rule retrain_offline_without:
        input:
            unpack(
                artefacts(
                    checkpoints=layout.CHECKPOINTS,
                    final_responses=layout.FINAL_RESPONSES.replace("{final_set}", "heldout"),
                    eval_prompts=tokens("eval_prompts"),
                    sft=initial,
                    baseline=f"{layout.STAGE_EVALUATION}{layout.RESPONSES}".replace("{stage}", "sft"),
                    preferences=tokens("preferences"),
                    reference=reference_logps,
                )
            ),
        output:
            tables=directory(layout.WITHOUT),
            provenance=layout.record(layout.WITHOUT),
        log:
            f"{layout.RUN_LOGS}/retrain_without_from-{{step}}.log",
        wildcard_constraints:
            run=runs_of("offline"),
        conda:
            "../../envs/validate.yaml"
        resources:
            gpu=needs("offline", "gpu"),
            mem_mb=needs("offline", "mem_mb"),
            runtime=needs("offline", "runtime"),
        params:
            **retraining(TRAIN_OFFLINE),
            start="init",
        script:
            "../scripts/retrain_without.py"

    use rule retrain_offline_without as retrain_online_without with:
        input:
            unpack(
                artefacts(
                    checkpoints=layout.CHECKPOINTS,
                    final_responses=layout.FINAL_RESPONSES.replace("{final_set}", "heldout"),
                    eval_prompts=tokens("eval_prompts"),
                    sft=initial,
                    baseline=f"{layout.STAGE_EVALUATION}{layout.RESPONSES}".replace("{stage}", "sft"),
                    prompts=tokens("preferences"),
                    reward=layout.REWARD,
                    reference=initial,
                )
            ),
        wildcard_constraints:
            run=runs_of("online"),
        resources:
            gpu=needs("online", "gpu"),
            mem_mb=needs("online", "mem_mb"),
            runtime=needs("online", "runtime"),
        params:
            **retraining(TRAIN_ONLINE),
            start="policy",

    rule train_halves:
        input:
            unpack(
                artefacts(
                    init=initial_model,
                    preferences=tokens("preferences"),
                    reference=reference_logps,
                    final_responses=layout.FINAL_RESPONSES.replace("{final_set}", "heldout"),
                )
            ),
        output:
            tables=directory(layout.HALVES),
            provenance=layout.record(layout.HALVES),
        log:
            f"{layout.RUN_LOGS}/train_halves_{{chunk}}.log",
        conda:
            "../../envs/train.yaml"
        resources:
            gpu=needs("offline", "gpu"),
            mem_mb=needs("offline", "mem_mb"),
            runtime=needs("offline", "runtime"),
        params:
            code=code("train_halves.py"),
            objective_code=objective_code,
            training=training,
            subsets=subsets_of_chunk,
            seed=CONFIG["validation"]["halves"]["seed"],
            state=f"{layout.STATE}/halves_{{chunk}}",
        script:
            "../scripts/train_halves.py"

    rule tabulate_validation:
        input:
            unpack(artefacts(without=retrained, halves=halved, probes=probed_whole)),
            dynamics=ancient(DYNAMICS),
            dynamics_record=layout.record(DYNAMICS),
        output:
            **VALIDATION,
            provenance=layout.record(VALIDATION["effects"]),
        log:
            f"{layout.LOGS}/tabulate_validation.log",
        conda:
            "../../envs/plot.yaml"
        params:
            code=code("tabulate_validation.py"),
            intervals=intervals,
        script:
            "../scripts/tabulate_validation.py"

    rule draw_validation:
        input:
            unpack(validated),
            tables_record=layout.record(VALIDATION["effects"]),
        output:
            multiext(layout.VALIDATION_FIGURES, figure=".png", vector=".pdf", provenance=".png.json"),
        log:
            f"{layout.LOGS}/draw_validation_{{figure}}.log",
        wildcard_constraints:
            figure=names(VALIDATION_DRAWN),
        conda:
            "../../envs/plot.yaml"
        params:
            code=lambda wildcards: fingerprint_once(
                WORKFLOW / "scripts" / "draw.py", f"{DRAW_VALIDATION}{wildcards.figure}"
            ),
            function=lambda wildcards: f"{DRAW_VALIDATION}{wildcards.figure}",
            arguments={},
        script:
            "../scripts/draw.py"

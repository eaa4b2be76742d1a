"""Distance of language models to the target of their objectives, π_ref(y|x) exp(r(x, y)/τ)/Z(x).

REQUIRED INPUTS: sft/, checkpoints/ of the runs that the section `target` names, reward/ (or a scoring function),
evaluation prompts.
OUTPUTS: <model>/target.parquet and tables/target*.csv, where the configuration has a section `target`.
"""

TARGET = f"{layout.TABLES}/target.csv"
TARGET_CLAIMS = f"{layout.TABLES}/target_claims.csv"

# What the experiment is asked for, and what of it the report shows; nothing where the configuration has no target.
TARGET_FILES, TARGET_SHOWN = [], {}

if CONFIG["target"]:
    TARGET_FILES = list(map(of_experiment, [TARGET, TARGET_CLAIMS]))
    TARGET_SHOWN = {
        "target_distances": ancient(TARGET),
        "target_claims": ancient(TARGET_CLAIMS),
        "target_record": layout.record(TARGET),
    }

    # One job for all runs of a model: policies weigh one another's samples, and jobs pay seconds of imports.
    rule sample_target:
        input:
            unpack(
                artefacts(
                    sft=layout.SFT,
                    prompts=tokens("eval_prompts"),
                    reward=target_model,
                    checkpoints=target_checkpoints,
                )
            ),
        output:
            samples=layout.TARGET_SAMPLES,
            provenance=layout.record(layout.TARGET_SAMPLES),
        log:
            f"{layout.MODEL_LOGS}/sample_target.log",
        conda:
            "../../envs/train.yaml"
        resources:
            gpu=needs("generate", "gpu"),
            mem_mb=needs("generate", "mem_mb"),
            runtime=needs("generate", "runtime"),
        params:
            code=code("sample_target.py"),
            function=target_function,
            function_code=target_code,
            steps=target_steps,
            settings={
                key: CONFIG["target"][key] for key in ("prompts", "samples", "proposal_samples", "max_new_tokens")
            },
            seed=CONFIG["data"]["seed"],
        script:
            "../scripts/sample_target.py"

    rule tabulate_target:
        input:
            unpack(artefacts(samples=[of_experiment(layout.TARGET_SAMPLES, model=model) for model in TARGET_TRAININGS])),
        output:
            target=TARGET,
            partition=f"{layout.TABLES}/target_partition.csv",
            claims=TARGET_CLAIMS,
            provenance=layout.record(TARGET),
        log:
            f"{layout.LOGS}/tabulate_target.log",
        conda:
            "../../envs/plot.yaml"
        params:
            code=code("tabulate_target.py"),
            own={
                model: {run: RUNS[model, run].temperature for run, _ in trainings}
                for model, trainings in TARGET_TRAININGS.items()
            },
            late=sorted({run.name for run in RUNS.values() if run.target and run.init_step}),
            temperature=CONFIG["target"]["temperature"],
            least_ess=CONFIG["target"]["least_ess"],
        script:
            "../scripts/tabulate_target.py"

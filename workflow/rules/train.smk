"""Preference optimisation: one rule per family of objectives, one job per run and seed.

REQUIRED INPUTS: the model's sft/ (or base/), preferences.parquet, and reference/ (offline) or reward/ (online).
OUTPUTS: results/{experiment}/{model}/{run}/seed{seed}/checkpoints/step-<t>/ and training.csv.
Training state for an exact resume is kept in .../state/, which is no output: Snakemake deletes the outputs of a failed
job, and a restarted job goes on from its state.
"""


rule train_offline:
    input:
        init=initial_model,
        preferences=artefact("results/{experiment}/{model}/preferences.parquet"),
        reference=reference_logps,
    output:
        checkpoints=checkpoints("results/{experiment}/{model}/{run}/seed{seed}/checkpoints"),
        log="results/{experiment}/{model}/{run}/seed{seed}/training.csv",
        provenance="results/{experiment}/{model}/{run}/seed{seed}/checkpoints.json",
    log:
        "results/{experiment}/logs/{model}/{run}/seed{seed}/train.log",
    wildcard_constraints:
        run=names(sorted({run.name for run in RUNS.values() if run.family == "offline"})),
    conda:
        "../../envs/train.yaml"
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards: 128000 if gpus(wildcards) else 3000,
        runtime=lambda wildcards: 2880 if gpus(wildcards) else 30,
    params:
        code=code("train_offline.py"),
        objective_code=objective_code,
        training=training,
        state="results/{experiment}/{model}/{run}/seed{seed}/state/train",
    script:
        "../scripts/train_offline.py"


rule train_online:
    input:
        init=initial_model,
        reference=initial,
        reward=artefact("results/{experiment}/{model}/reward"),
        preferences=artefact("results/{experiment}/{model}/preferences.parquet"),
    output:
        checkpoints=checkpoints("results/{experiment}/{model}/{run}/seed{seed}/checkpoints"),
        log="results/{experiment}/{model}/{run}/seed{seed}/training.csv",
        provenance="results/{experiment}/{model}/{run}/seed{seed}/checkpoints.json",
    log:
        "results/{experiment}/logs/{model}/{run}/seed{seed}/train.log",
    wildcard_constraints:
        run=names(sorted({run.name for run in RUNS.values() if run.family == "online"})),
    conda:
        "../../envs/train.yaml"
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards: 128000 if gpus(wildcards) else 3000,
        runtime=lambda wildcards: 2880 if gpus(wildcards) else 30,
    params:
        code=code("train_online.py"),
        objective_code=objective_code,
        training=training,
        state="results/{experiment}/{model}/{run}/seed{seed}/state/train",
    script:
        "../scripts/train_online.py"

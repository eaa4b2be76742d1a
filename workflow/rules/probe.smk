"""Final responses D′ and the probe of every checkpoint of a probed run.

REQUIRED INPUTS: a run's checkpoints/, its model's sft/ (or base/) as the reference, prompts; reward/ (online).
OUTPUTS: .../final_responses/{final_set}.parquet and .../probe/{final_set}/step-<t>/{samples,scores,batches}.parquet.
"""


rule generate_final_responses:
    input:
        checkpoints=artefact("results/{experiment}/{model}/{run}/seed{seed}/checkpoints"),
        data=artefact("results/{experiment}/data"),
        preferences=artefact("results/{experiment}/{model}/preferences.parquet"),
    output:
        responses="results/{experiment}/{model}/{run}/seed{seed}/final_responses/{final_set}.parquet",
        provenance="results/{experiment}/{model}/{run}/seed{seed}/final_responses/{final_set}.parquet.json",
    log:
        "results/{experiment}/logs/{model}/{run}/seed{seed}/final_responses_{final_set}.log",
    conda:
        "../../envs/train.yaml"
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards: 64000 if gpus(wildcards) else 3000,
        runtime=240,
    params:
        code=code("generate_final_responses.py"),
        step=lambda wildcards: run_of(wildcards).steps[-1],
        samples=config["probe"]["samples"],
        seed=config["probe"]["seed"],
        max_new_tokens=config["evaluation"]["max_new_tokens"],
    script:
        "../scripts/generate_final_responses.py"


rule probe_checkpoints:
    input:
        checkpoints=artefact("results/{experiment}/{model}/{run}/seed{seed}/checkpoints"),
        reference=initial,
        preferences=artefact("results/{experiment}/{model}/preferences.parquet"),
        final_responses=artefact("results/{experiment}/{model}/{run}/seed{seed}/final_responses/{final_set}.parquet"),
        reward=reward_of_rollouts,
    output:
        tables=temp(directory("results/{experiment}/{model}/{run}/seed{seed}/probe_chunks/{final_set}/{chunk}")),
        provenance="results/{experiment}/{model}/{run}/seed{seed}/probe_chunks/{final_set}/{chunk}.json",
    log:
        "results/{experiment}/logs/{model}/{run}/seed{seed}/probe_{final_set}_{chunk}.log",
    conda:
        "../../envs/train.yaml"
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards: 128000 if gpus(wildcards) else 3000,
        runtime=lambda wildcards: 720 if gpus(wildcards) else 30,
    params:
        code=code("probe_checkpoints.py"),
        objective_code=objective_code,
        steps=steps_of_chunk,
        training=training,
        probe=config["probe"],
        state="results/{experiment}/{model}/{run}/seed{seed}/state/probe_{final_set}_{chunk}",
    script:
        "../scripts/probe_checkpoints.py"


rule collect_probe:
    input:
        tables=probe_chunks,
    output:
        tables=directory("results/{experiment}/{model}/{run}/seed{seed}/probe/{final_set}"),
        provenance="results/{experiment}/{model}/{run}/seed{seed}/probe/{final_set}.json",
    log:
        "results/{experiment}/logs/{model}/{run}/seed{seed}/collect_probe_{final_set}.log",
    localrule: True
    conda:
        "../../envs/plot.yaml"
    params:
        code=code("collect_probe.py"),
    script:
        "../scripts/collect_probe.py"

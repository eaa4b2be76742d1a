"""Greedy responses to the evaluation prompts and the judge's preferences over the SFT model's responses.

REQUIRED INPUTS: a run's checkpoints/ (or the base or SFT model), reward/, evaluation prompts.
OUTPUTS: .../evaluation/<chunk>/{responses,annotations}.parquet.
"""

# The judge's own files, if it is one of ours: editing its prompt asks it again.
JUDGE_FILES = sorted(map(str, Path("workflow/judges", config["evaluation"]["judge"]).glob("*")))


rule respond_stage:
    input:
        model=artefact("results/{experiment}/{model}/{stage}"),
        sft=artefact("results/{experiment}/{model}/sft"),
        reward=artefact("results/{experiment}/{model}/reward"),
        data=artefact("results/{experiment}/data"),
    output:
        responses="results/{experiment}/{model}/evaluation/{stage}/responses.parquet",
        provenance="results/{experiment}/{model}/evaluation/{stage}/responses.parquet.json",
    log:
        "results/{experiment}/logs/{model}/respond_{stage}.log",
    conda:
        "../../envs/train.yaml"
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards: 64000 if gpus(wildcards) else 3000,
        runtime=240,
    params:
        code=code("generate_responses.py"),
        steps=[0],
        max_new_tokens=config["evaluation"]["max_new_tokens"],
        seed=config["data"]["seed"],
    script:
        "../scripts/generate_responses.py"


rule respond_run:
    input:
        model=artefact("results/{experiment}/{model}/{run}/seed{seed}/checkpoints"),
        sft=artefact("results/{experiment}/{model}/sft"),
        reward=artefact("results/{experiment}/{model}/reward"),
        data=artefact("results/{experiment}/data"),
    output:
        responses="results/{experiment}/{model}/{run}/seed{seed}/evaluation/{chunk}/responses.parquet",
        provenance="results/{experiment}/{model}/{run}/seed{seed}/evaluation/{chunk}/responses.parquet.json",
    log:
        "results/{experiment}/logs/{model}/{run}/seed{seed}/respond_{chunk}.log",
    conda:
        "../../envs/train.yaml"
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards: 64000 if gpus(wildcards) else 3000,
        runtime=lambda wildcards: 720 if gpus(wildcards) else 30,
    params:
        code=code("generate_responses.py"),
        steps=steps_of_chunk,
        max_new_tokens=config["evaluation"]["max_new_tokens"],
        seed=config["data"]["seed"],
    script:
        "../scripts/generate_responses.py"


rule judge_responses:
    input:
        responses=artefact("results/{experiment}/{model}/{path}/responses.parquet"),
        baseline=artefact("results/{experiment}/{model}/evaluation/sft/responses.parquet"),
        judge=JUDGE_FILES,
    output:
        annotations="results/{experiment}/{model}/{path}/annotations.parquet",
        provenance="results/{experiment}/{model}/{path}/annotations.parquet.json",
    log:
        "results/{experiment}/logs/{model}/{path}/judge.log",
    wildcard_constraints:
        path=r"([^/]+/seed\d+/)?evaluation/\w+",
    conda:
        "../../envs/judge.yaml"
    params:
        code=code("judge_responses.py"),
        judge=config["evaluation"]["judge"],
    script:
        "../scripts/judge_responses.py"

"""Base model, SFT model, preferences, reward model and reference log-probs: what all runs of a model share.

REQUIRED INPUTS: results/{experiment}/data/.
OUTPUTS: results/{experiment}/{model}/{base,sft,reward}/ (Hugging Face folders), preferences.parquet and
reference/{init}.parquet.
"""

WORLD_MODELS = [name for name, model in MODELS.items() if model["base"]["source"] == "world"]
TRAINED_REWARDS = [name for name, model in MODELS.items() if model["reward"]["source"] == "train"]


rule pretrain_base:
    input:
        data=artefact("results/{experiment}/data"),
    output:
        model=directory("results/{experiment}/{model}/base"),
        provenance="results/{experiment}/{model}/base.json",
    log:
        "results/{experiment}/logs/{model}/pretrain_base.log",
    wildcard_constraints:
        model=names(WORLD_MODELS),
    conda:
        "../../envs/train.yaml"
    params:
        code=code("pretrain_base.py"),
        settings=lambda wildcards: MODELS[wildcards.model]["base"],
        state="results/{experiment}/{model}/state/base",
    script:
        "../scripts/pretrain_base.py"


rule download_base:
    output:
        model=directory("results/{experiment}/{model}/base"),
        provenance="results/{experiment}/{model}/base.json",
    log:
        "results/{experiment}/logs/{model}/download_base.log",
    wildcard_constraints:
        model=names(set(MODELS) - set(WORLD_MODELS)),
    localrule: True
    conda:
        "../../envs/train.yaml"
    params:
        code=code("download_base.py"),
        settings=lambda wildcards: MODELS[wildcards.model]["base"],
    script:
        "../scripts/download_base.py"


rule train_sft:
    input:
        base=artefact("results/{experiment}/{model}/base"),
        data=artefact("results/{experiment}/data"),
    output:
        model=directory("results/{experiment}/{model}/sft"),
        provenance="results/{experiment}/{model}/sft.json",
    log:
        "results/{experiment}/logs/{model}/train_sft.log",
    conda:
        "../../envs/train.yaml"
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards: 96000 if gpus(wildcards) else 3000,
        runtime=lambda wildcards: 1440 if gpus(wildcards) else 30,
    params:
        code=code("train_sft.py"),
        settings=lambda wildcards: MODELS[wildcards.model]["sft"],
        state="results/{experiment}/{model}/state/sft",
    script:
        "../scripts/train_sft.py"


if config["data"]["source"] == "world":

    rule sample_preferences:
        input:
            sft=artefact("results/{experiment}/{model}/sft"),
            data=artefact("results/{experiment}/data"),
        output:
            preferences="results/{experiment}/{model}/preferences.parquet",
            provenance="results/{experiment}/{model}/preferences.parquet.json",
        log:
            "results/{experiment}/logs/{model}/sample_preferences.log",
        conda:
            "../../envs/train.yaml"
        resources:
            gpu=gpus,
            mem_mb=lambda wildcards: 64000 if gpus(wildcards) else 3000,
            runtime=240,
        params:
            code=code("sample_preferences.py"),
            settings=config["data"],
        script:
            "../scripts/sample_preferences.py"

else:

    rule copy_preferences:
        input:
            data=artefact("results/{experiment}/data"),
        output:
            preferences="results/{experiment}/{model}/preferences.parquet",
            provenance="results/{experiment}/{model}/preferences.parquet.json",
        log:
            "results/{experiment}/logs/{model}/copy_preferences.log",
        localrule: True
        conda:
            "../../envs/train.yaml"
        params:
            code=code("copy_preferences.py"),
        script:
            "../scripts/copy_preferences.py"


rule train_reward:
    input:
        sft=artefact("results/{experiment}/{model}/sft"),
        preferences=artefact("results/{experiment}/{model}/preferences.parquet"),
    output:
        model=directory("results/{experiment}/{model}/reward"),
        provenance="results/{experiment}/{model}/reward.json",
    log:
        "results/{experiment}/logs/{model}/train_reward.log",
    wildcard_constraints:
        model=names(TRAINED_REWARDS),
    conda:
        "../../envs/train.yaml"
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards: 96000 if gpus(wildcards) else 3000,
        runtime=lambda wildcards: 1440 if gpus(wildcards) else 30,
    params:
        code=code("train_reward.py"),
        settings=lambda wildcards: MODELS[wildcards.model]["reward"],
        state="results/{experiment}/{model}/state/reward",
    script:
        "../scripts/train_reward.py"


rule download_reward:
    output:
        model=directory("results/{experiment}/{model}/reward"),
        provenance="results/{experiment}/{model}/reward.json",
    log:
        "results/{experiment}/logs/{model}/download_reward.log",
    wildcard_constraints:
        model=names(set(MODELS) - set(TRAINED_REWARDS)),
    localrule: True
    conda:
        "../../envs/train.yaml"
    params:
        code=code("download_reward.py"),
        settings=lambda wildcards: MODELS[wildcards.model]["reward"],
    script:
        "../scripts/download_reward.py"


rule compute_reference:
    input:
        model=artefact("results/{experiment}/{model}/{init}"),
        preferences=artefact("results/{experiment}/{model}/preferences.parquet"),
    output:
        reference="results/{experiment}/{model}/reference/{init}.parquet",
        provenance="results/{experiment}/{model}/reference/{init}.parquet.json",
    log:
        "results/{experiment}/logs/{model}/compute_reference_{init}.log",
    conda:
        "../../envs/train.yaml"
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards: 64000 if gpus(wildcards) else 3000,
        runtime=240,
    params:
        code=code("compute_reference.py"),
        settings=lambda wildcards: {
            key: MODELS[wildcards.model]["offline"][key] for key in ("micro_batch_size", "max_length", "precision")
        },
    script:
        "../scripts/compute_reference.py"

"""Base model, tokens, SFT model, preferences, reward model and reference log-probs: what all runs of a model share.

REQUIRED INPUTS: data/.
OUTPUTS: <model>/{base,sft,reward,published_reward}/ (Hugging Face folders), tokens/{data_set}.arrow, preferences.parquet
(of a world), reference/{init}.parquet, and, where a run's objective needs them, rewards.parquet of the pairs.
"""

WORLD_MODELS = [name for name, model in MODELS.items() if model["base"]["source"] == "world"]
TRAINED_REWARDS = [name for name, model in MODELS.items() if model["reward"]["source"] == "train"]
PUBLISHED_REWARDS = set(MODELS) - set(TRAINED_REWARDS)
NORMALISED_REWARDS = [name for name in PUBLISHED_REWARDS if MODELS[name]["reward"]["normalise"]]


rule pretrain_base:
    input:
        unpack(artefacts(data=layout.DATA)),
    output:
        model=directory(layout.BASE),
        provenance=layout.record(layout.BASE),
    log:
        f"{layout.MODEL_LOGS}/pretrain_base.log",
    wildcard_constraints:
        model=names(WORLD_MODELS),
    conda:
        "../../envs/train.yaml"
    params:
        code=code("pretrain_base.py"),
        settings=settings_of("base"),
        state=f"{layout.MODEL_STATE}/base",
    script:
        "../scripts/pretrain_base.py"


rule download_base:
    output:
        model=directory(layout.BASE),
        provenance=layout.record(layout.BASE),
    log:
        f"{layout.MODEL_LOGS}/download_base.log",
    wildcard_constraints:
        model=names(set(MODELS) - set(WORLD_MODELS)),
    localrule: True
    conda:
        "../../envs/train.yaml"
    resources:
        mem_mb=needs("download", "mem_mb"),
        runtime=needs("download", "runtime"),
    params:
        code=code("download_base.py"),
        settings=published("base"),
        content=content_of("base"),
    script:
        "../scripts/download_base.py"


# The one filter of rows, and their only tokenisation: whoever reads data of a model reads this.
rule tokenise:
    input:
        unpack(artefacts(base=layout.BASE, rows=rows)),
    output:
        tokens=layout.TOKENS,
        provenance=layout.record(layout.TOKENS),
    log:
        f"{layout.MODEL_LOGS}/tokenise_{{data_set}}.log",
    conda:
        "../../envs/train.yaml"
    threads: 1 if CONFIG["data"]["source"] == "world" else 4
    params:
        code=code("tokenise.py"),
        special_tokens=CONFIG["data"]["source"] == "world",  # where models write preferences, and say such tokens
    script:
        "../scripts/tokenise.py"


rule train_sft:
    input:
        unpack(artefacts(base=layout.BASE, data=tokens("sft"))),
    output:
        model=directory(layout.SFT),
        provenance=layout.record(layout.SFT),
    log:
        f"{layout.MODEL_LOGS}/train_sft.log",
    conda:
        "../../envs/train.yaml"
    resources:
        gpu=needs("sft", "gpu"),
        mem_mb=needs("sft", "mem_mb"),
        runtime=needs("sft", "runtime"),
    params:
        code=code("train_sft.py"),
        settings=settings_of("sft"),
        state=f"{layout.MODEL_STATE}/sft",
    script:
        "../scripts/train_sft.py"


if CONFIG["data"]["source"] == "world":

    rule sample_preferences:
        input:
            unpack(artefacts(sft=layout.SFT, data=layout.DATA)),
        output:
            preferences=layout.PREFERENCES,
            provenance=layout.record(layout.PREFERENCES),
        log:
            f"{layout.MODEL_LOGS}/sample_preferences.log",
        conda:
            "../../envs/train.yaml"
        resources:
            gpu=needs("generate", "gpu"),
            mem_mb=needs("generate", "mem_mb"),
            runtime=needs("generate", "runtime"),
        params:
            code=code("sample_preferences.py"),
            settings=CONFIG["data"],
        script:
            "../scripts/sample_preferences.py"


rule train_reward:
    input:
        unpack(artefacts(sft=layout.SFT, preferences=tokens("preferences"))),
    output:
        model=directory(layout.REWARD),
        provenance=layout.record(layout.REWARD),
    log:
        f"{layout.MODEL_LOGS}/train_reward.log",
    wildcard_constraints:
        model=names(TRAINED_REWARDS),
    conda:
        "../../envs/train.yaml"
    resources:
        gpu=needs("reward", "gpu"),
        mem_mb=needs("reward", "mem_mb"),
        runtime=needs("reward", "runtime"),
    params:
        code=code("train_reward.py"),
        settings=settings_of("reward"),
        state=f"{layout.MODEL_STATE}/reward",
    script:
        "../scripts/train_reward.py"


rule download_reward:
    output:
        model=directory(layout.REWARD),
        provenance=layout.record(layout.REWARD),
    log:
        f"{layout.MODEL_LOGS}/download_reward.log",
    wildcard_constraints:
        model=names(PUBLISHED_REWARDS - set(NORMALISED_REWARDS)),
    localrule: True
    conda:
        "../../envs/train.yaml"
    resources:
        mem_mb=needs("download", "mem_mb"),
        runtime=needs("download", "runtime"),
    params:
        code=code("download_reward.py"),
        settings=published("reward"),
        content=content_of("reward"),
    script:
        "../scripts/download_reward.py"


# A reward model whose scores are normalised is downloaded beside its place, and put there with its scale.
use rule download_reward as download_published_reward with:
    output:
        model=directory(layout.PUBLISHED_REWARD),
        provenance=layout.record(layout.PUBLISHED_REWARD),
    log:
        f"{layout.MODEL_LOGS}/download_published_reward.log",
    wildcard_constraints:
        model=names(NORMALISED_REWARDS),


rule normalise_reward:
    input:
        unpack(artefacts(sft=layout.SFT, preferences=tokens("preferences"), published=layout.PUBLISHED_REWARD)),
    output:
        model=directory(layout.REWARD),
        provenance=layout.record(layout.REWARD),
    log:
        f"{layout.MODEL_LOGS}/normalise_reward.log",
    wildcard_constraints:
        model=names(NORMALISED_REWARDS),
    conda:
        "../../envs/train.yaml"
    resources:
        gpu=needs("generate", "gpu"),
        mem_mb=needs("generate", "mem_mb"),
        runtime=needs("generate", "runtime"),
    params:
        code=code("normalise_reward.py"),
        settings=lambda wildcards: {
            key: MODELS[wildcards.model]["online"][key]
            for key in ("micro_batch_size", "temperature", "top_p", "max_prompt_length", "max_new_tokens")
        },
    script:
        "../scripts/normalise_reward.py"


rule compute_reference:
    input:
        unpack(artefacts(model=f"{layout.MODEL}/{{init}}", preferences=tokens("preferences"))),
    output:
        reference=layout.REFERENCE,
        provenance=layout.record(layout.REFERENCE),
    log:
        f"{layout.MODEL_LOGS}/compute_reference_{{init}}.log",
    conda:
        "../../envs/train.yaml"
    resources:
        gpu=needs("reference", "gpu"),
        mem_mb=needs("reference", "mem_mb"),
        runtime=needs("reference", "runtime"),
    params:
        code=code("compute_reference.py"),
        settings=lambda wildcards: {
            key: MODELS[wildcards.model]["offline"][key] for key in ("micro_batch_size", "max_length", "precision")
        },
    script:
        "../scripts/compute_reference.py"


# Only objectives of rewards ask for it. Scored by the reward model, or by a function that the configuration names.
rule score_preferences:
    input:
        unpack(artefacts(model=layout.SFT, preferences=tokens("preferences"), reward=scoring_model)),
    output:
        rewards=layout.PREFERENCE_REWARDS,
        provenance=layout.record(layout.PREFERENCE_REWARDS),
    log:
        f"{layout.MODEL_LOGS}/score_preferences.log",
    conda:
        "../../envs/train.yaml"
    resources:
        gpu=needs("generate", "gpu"),
        mem_mb=needs("generate", "mem_mb"),
        runtime=needs("generate", "runtime"),
    params:
        code=code("score_preferences.py"),
        function=scoring_function,
        function_code=scoring_code,
        settings=lambda wildcards: {
            key: MODELS[wildcards.model]["offline"][key] for key in ("micro_batch_size", "max_length")
        },
    script:
        "../scripts/score_preferences.py"

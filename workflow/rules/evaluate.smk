"""Greedy responses to the evaluation prompts and the judge's preferences over the SFT model's responses.

REQUIRED INPUTS: a run's checkpoints/ (or the base or SFT model), reward/, evaluation prompts.
OUTPUTS: judge.json, .../evaluation/<chunk>/{responses,annotations}.parquet; the judge's report card, if it is asked for.
Answers of a remote judge stay in judgements/, which is no output: they were paid for, and later jobs read them.
"""

# A judge that loads a model needs what a judge elsewhere does not.
JUDGE_ENVIRONMENT = "../../envs/judge_model.yaml" if JUDGE.in_process else "../../envs/judge.yaml"


# Whether the judge can be reached, exists and gives verdicts, and what it will cost. `onstart` asks the same before
# anything is trained. No stage takes this as input: with a judge that changes, it would train again, or be masked.
rule examine_judge:
    input:
        unpack(artefacts(data=layout.DATA)),
    output:
        judge=layout.JUDGE,
        provenance=layout.record(layout.JUDGE),
    log:
        f"{layout.LOGS}/examine_judge.log",
    localrule: True
    conda:
        JUDGE_ENVIRONMENT
    params:
        code=code("examine_judge.py"),
        judge_code=judge_code,
        digest=JUDGE.digest,
    script:
        "../scripts/examine_judge.py"


rule respond_stage:
    input:
        unpack(artefacts(model=layout.STAGE, sft=layout.SFT, reward=layout.REWARD, prompts=tokens("eval_prompts"))),
    output:
        responses=f"{layout.STAGE_EVALUATION}{layout.RESPONSES}",
        provenance=layout.record(f"{layout.STAGE_EVALUATION}{layout.RESPONSES}"),
    log:
        f"{layout.MODEL_LOGS}/respond_{{stage}}.log",
    conda:
        "../../envs/train.yaml"
    resources:
        gpu=needs("generate", "gpu"),
        mem_mb=needs("generate", "mem_mb"),
        runtime=needs("generate", "runtime"),
    params:
        code=code("generate_responses.py"),
        folders={0: "."},
        settings={"max_new_tokens": CONFIG["evaluation"]["max_new_tokens"]},
        seed=CONFIG["data"]["seed"],
    script:
        "../scripts/generate_responses.py"


use rule respond_stage as respond_run with:
    input:
        unpack(
            artefacts(model=layout.CHECKPOINTS, sft=layout.SFT, reward=layout.REWARD, prompts=tokens("eval_prompts"))
        ),
    output:
        responses=f"{layout.EVALUATION}{layout.RESPONSES}",
        provenance=layout.record(f"{layout.EVALUATION}{layout.RESPONSES}"),
    log:
        f"{layout.RUN_LOGS}/respond_{{chunk}}.log",
    params:
        folders=lambda wildcards: {step: f"step-{step}" for step in steps_of_chunk(wildcards)},


rule judge_responses:
    input:
        unpack(
            artefacts(
                responses=f"{layout.MODEL}/{{path}}{layout.RESPONSES}",
                baseline=f"{layout.MODEL}/evaluation/sft{layout.RESPONSES}",
            )
        ),
    output:
        annotations=f"{layout.MODEL}/{{path}}{layout.ANNOTATIONS}",
        provenance=layout.record(f"{layout.MODEL}/{{path}}{layout.ANNOTATIONS}"),
    log:
        f"{layout.MODEL_LOGS}/{{path}}/judge.log",
    wildcard_constraints:
        path=r"([^/]+/seed\d+/)?evaluation/\w+",
    localrule: JUDGE.remote  # where Snakemake runs: compute nodes often have no internet
    conda:
        JUDGE_ENVIRONMENT
    resources:
        gpu=judge_needs("gpu", otherwise=int(JUDGE.in_process)),
        mem_mb=judge_needs("mem_mb", otherwise=16_000 if JUDGE.in_process else 8000),
        runtime=judge_needs("runtime", otherwise=120),
    params:
        code=code("judge_responses.py"),
        judge_code=judge_code,
        judge=CONFIG["evaluation"]["judge"],
        order=CONFIG["evaluation"]["order"],
        digest=JUDGE.digest,  # of its files, model and endpoint: a new prompt asks again
    script:
        "../scripts/judge_responses.py"


if CARD := CONFIG["evaluation"]["report_card"]:

    rule mark_judge:
        input:
            unpack(artefacts(responses=last_answers)),
        output:
            card=f"{layout.TABLES}/judge_card.csv",
            judged=layout.JUDGED_PAIRS,
            provenance=layout.record(f"{layout.TABLES}/judge_card.csv"),
        log:
            f"{layout.LOGS}/mark_judge.log",
        localrule: JUDGE.remote
        conda:
            JUDGE_ENVIRONMENT
        resources:
            gpu=judge_needs("gpu", otherwise=int(JUDGE.in_process)),
            mem_mb=judge_needs("mem_mb", otherwise=16_000 if JUDGE.in_process else 8000),
            runtime=judge_needs("runtime", otherwise=120),
        params:
            code=code("mark_judge.py"),
            judge_code=judge_code,
            judge=CONFIG["evaluation"]["judge"],
            digest=JUDGE.digest,
            card=CARD,
            truth_code=code_of_judge(find_judge(CARD["truth"])) if CARD["truth"] else "",
            seed=CONFIG["data"]["seed"],
        script:
            "../scripts/mark_judge.py"

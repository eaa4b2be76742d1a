"""Greedy responses to the evaluation prompts and the judge's preferences over the SFT model's responses.

REQUIRED INPUTS: a run's checkpoints/ (or the base or SFT model), reward/, evaluation prompts.
OUTPUTS: .../evaluation/<chunk>/{responses,annotations}.parquet; the judge's report card, if it is asked for.
"""

JUDGE = CONFIG["evaluation"]["judge"]
# The judge's own files, if it is one of ours: editing its prompt asks it again.
JUDGE_FILES = sorted(map(str, Path("workflow/judges", JUDGE).glob("*")))


rule respond_stage:
    input:
        unpack(artefacts(model=layout.STAGE, sft=layout.SFT, reward=layout.REWARD, data=layout.DATA)),
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
        unpack(artefacts(model=layout.CHECKPOINTS, sft=layout.SFT, reward=layout.REWARD, data=layout.DATA)),
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
        judge=JUDGE_FILES,
    output:
        annotations=f"{layout.MODEL}/{{path}}{layout.ANNOTATIONS}",
        provenance=layout.record(f"{layout.MODEL}/{{path}}{layout.ANNOTATIONS}"),
    log:
        f"{layout.MODEL_LOGS}/{{path}}/judge.log",
    wildcard_constraints:
        path=r"([^/]+/seed\d+/)?evaluation/\w+",
    conda:
        "../../envs/judge.yaml"
    params:
        code=code("judge_responses.py"),
        judge_code=judge_code,
        judge=JUDGE,
        order=CONFIG["evaluation"]["order"],
    script:
        "../scripts/judge_responses.py"


if CARD := CONFIG["evaluation"]["report_card"]:

    rule mark_judge:
        input:
            unpack(artefacts(responses=last_answers)),
            judge=JUDGE_FILES,
        output:
            card=f"{layout.TABLES}/judge_card.csv",
            judged=layout.JUDGED_PAIRS,
            provenance=layout.record(f"{layout.TABLES}/judge_card.csv"),
        log:
            f"{layout.LOGS}/mark_judge.log",
        conda:
            "../../envs/judge.yaml"
        params:
            code=code("mark_judge.py"),
            judge_code=judge_code,
            judge=JUDGE,
            card=CARD,
            truth_code=code_of_judge(CARD["truth"] or ""),
            seed=CONFIG["data"]["seed"],
        script:
            "../scripts/mark_judge.py"

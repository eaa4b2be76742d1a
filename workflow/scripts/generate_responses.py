"""Rules respond_run and respond_stage: responses to the evaluation prompts, with KL to SFT and reward."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    from po_dynamics.evaluation.responses import evaluate_responses

    model = Path(snakemake.input.model[0])
    staged = snakemake.rule == "respond_stage"
    evaluate_responses(
        checkpoints={step: model if staged else model / f"step-{step}" for step in snakemake.params.steps},
        sft=Path(snakemake.input.sft[0]),
        reward=Path(snakemake.input.reward[0]),
        prompts=Path(snakemake.input.data[0]) / "eval_prompts.parquet",
        output=Path(snakemake.output.responses),
        settings={"max_new_tokens": snakemake.params.max_new_tokens, "seed": snakemake.params.seed},
    )

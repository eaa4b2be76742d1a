"""Rules respond_run and respond_stage: responses to the evaluation prompts, with KL to SFT and reward."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    from po_dynamics.evaluation.responses import evaluate_responses

    model = Path(snakemake.input.model)
    evaluate_responses(
        checkpoints={step: model / folder for step, folder in snakemake.params.folders.items()},
        sft=Path(snakemake.input.sft),
        reward=Path(snakemake.input.reward),
        prompts=Path(snakemake.input.prompts),
        output=Path(snakemake.output.responses),
        settings=snakemake.params.settings,
        seed=snakemake.params.seed,
    )

"""Rule judge_responses: the judge's preferences over the SFT model's responses,."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    from po_dynamics.evaluation.judge import judge_responses

    judge_responses(
        responses=Path(snakemake.input.responses),
        baseline=Path(snakemake.input.baseline),
        output=Path(snakemake.output.annotations),
        judge=snakemake.params.judge,
        order=snakemake.params.order,
    )

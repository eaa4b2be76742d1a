"""Rule judge_responses: the judge's preferences over the SFT model's responses,."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    from po_dynamics.evaluation.judge import judge_responses
    from po_dynamics.harness import config as configuration
    from po_dynamics.storage import layout

    judge_responses(
        responses=Path(snakemake.input.responses),
        baseline=Path(snakemake.input.baseline),
        output=Path(snakemake.output.annotations),
        judge=snakemake.params.judge,
        order=snakemake.params.order,
        # How fast and for how much is no parameter: a higher budget makes no verdict stale.
        calls=configuration.load(snakemake.config).calls,
        ledger=Path(layout.ledger(**snakemake.wildcards)),
        shared=Path(layout.LEDGERS.format(**snakemake.wildcards)),
    )

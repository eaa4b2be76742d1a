"""Rule compute_reference: reference log-probs of every preference pair, once per model and data set."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    from po_dynamics.training.reference import compute_reference

    compute_reference(
        model=Path(snakemake.input.model),
        data=Path(snakemake.input.preferences),
        output=Path(snakemake.output.reference),
        settings=snakemake.params.settings,
    )

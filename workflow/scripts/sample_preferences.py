"""Rule sample_preferences: preference pairs of the embedded world, some sampled from the SFT model."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    from po_dynamics.world.on_policy import sample_preferences

    sample_preferences(
        model=Path(snakemake.input.sft),
        data=Path(snakemake.input.data),
        output=Path(snakemake.output.preferences),
        settings=snakemake.params.settings,
    )

"""Rule normalise_reward: a published reward model with the scale of its scores."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    from po_dynamics.training.published_reward import normalise_reward

    normalise_reward(
        sft=Path(snakemake.input.sft),
        preferences=Path(snakemake.input.preferences),
        published=Path(snakemake.input.published),
        output=Path(snakemake.output.model),
        settings=snakemake.params.settings,
    )

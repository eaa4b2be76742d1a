"""Rule download_reward: a published reward model, or a local folder."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    from po_dynamics.models.hub import download_reward

    download_reward(snakemake.params.settings, Path(snakemake.output.model))

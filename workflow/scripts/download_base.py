"""Rule download_base: a published base model, or a local folder."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    from po_dynamics.models.hub import download_base

    download_base(snakemake.params.settings, Path(snakemake.output.model))

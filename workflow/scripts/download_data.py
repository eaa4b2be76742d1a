"""Rule download_data: the paper's data sets in the common schema."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    from po_dynamics.data.published import download_data

    download_data(Path(snakemake.output.data), snakemake.params.settings)

"""Rule make_world: the embedded world's data sets and tokenizer."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    from po_dynamics.world.datasets import write_world_data

    write_world_data(Path(snakemake.output.data), snakemake.params.settings)

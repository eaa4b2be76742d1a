"""Rule pretrain_base: the embedded world's base model, from scratch."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    from po_dynamics.world.base_model import pretrain_base

    data = Path(snakemake.input.data)
    pretrain_base(
        data=data / "pretraining.parquet",
        tokenizer=data / "tokenizer",
        output=Path(snakemake.output.model),
        state=Path(snakemake.params.state),
        settings=snakemake.params.settings,
    )

"""Rule pretrain_base: the embedded world's base model, from scratch."""

from pathlib import Path

from po_dynamics.stage import stage

with stage(snakemake):
    from po_dynamics.pretrain import pretrain_base

    data = Path(snakemake.input.data[0])
    pretrain_base(
        data=data / "pretraining.parquet",
        tokenizer=data / "tokenizer",
        output=Path(snakemake.output.model),
        state=Path(snakemake.params.state),
        settings=snakemake.params.settings,
    )

"""Rule train_sft: supervised fine-tuning of the base model."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    from po_dynamics.training.sft import train_sft

    train_sft(
        base=Path(snakemake.input.base[0]),
        data=Path(snakemake.input.data[0]) / "sft.parquet",
        output=Path(snakemake.output.model),
        state=Path(snakemake.params.state),
        settings=snakemake.params.settings,
    )

"""Rule train_sft: supervised fine-tuning of the base model."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    from po_dynamics.harness.launch import launch

    launch(
        "po_dynamics.training.sft:train_sft",
        {
            "base": Path(snakemake.input.base),
            "data": Path(snakemake.input.data),
            "output": Path(snakemake.output.model),
            "state": Path(snakemake.params.state),
            "settings": snakemake.params.settings,
        },
        devices=snakemake.resources.get("gpu", 0),
    )

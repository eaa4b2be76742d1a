"""Rule train_reward: a Bradley–Terry reward model from the SFT model."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    from po_dynamics.harness.launch import launch

    launch(
        "po_dynamics.training.reward:train_reward",
        {
            "sft": Path(snakemake.input.sft),
            "preferences": Path(snakemake.input.preferences),
            "output": Path(snakemake.output.model),
            "state": Path(snakemake.params.state),
            "settings": snakemake.params.settings,
        },
        devices=snakemake.resources.get("gpu", 0),
    )

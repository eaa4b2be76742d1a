"""Rule train_reward: a Bradley–Terry reward model from the SFT model."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    from po_dynamics.training.reward import train_reward

    train_reward(
        sft=Path(snakemake.input.sft[0]),
        preferences=Path(snakemake.input.preferences[0]),
        output=Path(snakemake.output.model),
        state=Path(snakemake.params.state),
        settings=snakemake.params.settings,
    )

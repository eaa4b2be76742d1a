"""Rule score_preferences: rewards of both responses of every preference pair."""

from pathlib import Path

from po_dynamics.harness.job import inputs_of, stage

with stage(snakemake):
    from po_dynamics.training.preference_rewards import score_preferences

    inputs = inputs_of(snakemake)
    score_preferences(
        model=inputs["model"],
        preferences=inputs["preferences"],
        source=snakemake.params.function or inputs["reward"],
        output=Path(snakemake.output.rewards),
        settings=snakemake.params.settings,
    )

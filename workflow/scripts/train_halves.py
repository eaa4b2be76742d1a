"""Rule train_halves: trainings on some random halves of the preference pairs."""

from pathlib import Path

from po_dynamics.harness.job import inputs_of, stage

with stage(snakemake):
    from po_dynamics.objectives.registry import bind
    from po_dynamics.training.offline import train_offline
    from po_dynamics.validation.halves import FullTraining, train_halves

    given = snakemake.params
    full = FullTraining(
        **inputs_of(snakemake),
        objective=bind(**given.training["objective"]),
        settings=given.training["settings"],
        seed=given.training["seed"],
    )
    train_halves(full, train_offline, given.subsets, given.seed, Path(snakemake.output.tables), Path(given.state))

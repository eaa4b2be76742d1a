"""Rule probe_checkpoints: token scores, gradient norms and dot products of a chunk of a run's checkpoints."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    from po_dynamics.objectives.registry import bind
    from po_dynamics.probe import stages

    training = snakemake.params.training
    arguments = {
        "checkpoints": Path(snakemake.input.checkpoints),
        "steps": snakemake.params.steps,
        "reference": Path(snakemake.input.reference),
        "preferences": Path(snakemake.input.preferences),
        "final_responses": Path(snakemake.input.final_responses),
        "output": Path(snakemake.output.tables),
        "state": Path(snakemake.params.state),
        "objective": bind(**training["objective"]),
        "settings": snakemake.params.probe,
        "training": training["settings"],
        "final_set": snakemake.wildcards.final_set,
    }
    if "reward" in snakemake.input.keys():  # noqa: SIM118 (Snakemake's container is a list)
        stages.probe_online(reward=Path(snakemake.input.reward), **arguments)
    else:
        stages.probe_offline(**arguments)

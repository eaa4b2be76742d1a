"""Rule probe_checkpoints: token scores, gradient norms and dot products of a chunk of a run's checkpoints."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    from po_dynamics.objectives.registry import bind
    from po_dynamics.probe import stages
    from po_dynamics.settings.probe import Probe

    training = snakemake.params.training
    run = stages.ProbedRun(
        checkpoints=Path(snakemake.input.checkpoints),
        steps=snakemake.params.steps,
        reference=Path(snakemake.input.reference),
        preferences=Path(snakemake.input.preferences),
        final_responses=Path(snakemake.input.final_responses),
        output=Path(snakemake.output.tables),
        state=Path(snakemake.params.state),
        objective=bind(**training["objective"]),
        settings=Probe.of(snakemake.params.probe, "probe"),
        training=training["settings"],
        final_set=snakemake.wildcards.final_set,
    )
    if "reward" in snakemake.input.keys():  # noqa: SIM118 (Snakemake's container is a list)
        stages.probe_online(run, Path(snakemake.input.reward))
    else:
        stages.probe_offline(run)

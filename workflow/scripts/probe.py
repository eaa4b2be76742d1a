"""Rules probe_offline and probe_online: token scores, norms and dot products of a chunk of a run's checkpoints."""

from pathlib import Path

from po_dynamics.harness.job import inputs_of, stage

with stage(snakemake):
    import importlib

    from po_dynamics.objectives.registry import bind
    from po_dynamics.probe.run import ProbedRun
    from po_dynamics.settings.probe import Probe

    training, inputs = snakemake.params.training, inputs_of(snakemake)
    sources = {name: inputs.pop(name) for name in ("checkpoints", "reference", "preferences", "final_responses")}
    run = ProbedRun(
        **sources,
        steps=snakemake.params.steps,
        output=Path(snakemake.output.tables),
        state=Path(snakemake.params.state),
        objective=bind(**training["objective"]),
        settings=Probe.of(snakemake.params.probe, "probe"),
        training=training["settings"],
        final_set=snakemake.wildcards.final_set,
    )
    module, _, name = snakemake.params.function.partition(":")
    getattr(importlib.import_module(module), name)(run, **inputs)  # online the reward, offline rewards of pairs

"""Rules retrain_offline_without and retrain_online_without: an interval of a run, with and without each component."""

from pathlib import Path

from po_dynamics.harness.job import inputs_of, stage

with stage(snakemake):
    import importlib

    from po_dynamics.objectives.registry import bind
    from po_dynamics.validation.left_out import Interval, retrain_without

    given, files = snakemake.params, inputs_of(snakemake)
    module, _, name = given.function.partition(":")
    start = files.pop("checkpoints") / f"step-{snakemake.wildcards.step}"
    interval = Interval(
        start=start,
        first_step=int(snakemake.wildcards.step),
        last_step=given.last_step,
        judge=given.judge,
        responses=given.responses,
        **{name: files.pop(name) for name in ("final_responses", "sft", "baseline", "eval_prompts")},
    )
    retrain_without(
        interval,
        getattr(importlib.import_module(module), name),
        {given.start: start, **files},
        {arm: bind(**objective) for arm, objective in given.objectives.items()},
        given.training["settings"],
        given.training["seed"],
        Path(snakemake.output.tables),
        Path(given.state),
    )

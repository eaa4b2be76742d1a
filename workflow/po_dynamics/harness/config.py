"""Configuration: check it, fill in its defaults, and expand runs × sweeps × models × seeds.

Runs are data: an entry names an objective of `objectives.OBJECTIVES`, its parameters and what it overrides. The keys
and their defaults are declared in `po_dynamics.settings`. The Snakefile calls this module in every process it starts,
so nothing heavy is imported here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from po_dynamics.errors import InputError
from po_dynamics.objectives.declaration import Objective
from po_dynamics.objectives.families import UNCONTROLLED, is_uncontrolled
from po_dynamics.objectives.registry import bind, canonical
from po_dynamics.settings.experiment import Configuration, RunEntry, Start
from po_dynamics.settings.judging.calls import Calls
from po_dynamics.settings.judging.directory import Judge, check_judge, find_judge
from po_dynamics.settings.online import Online
from po_dynamics.settings.training import Offline

TRAINING: Mapping[str, type[Offline] | type[Online]] = {"offline": Offline, "online": Online}


@dataclass(frozen=True)
class Run:
    """One training run, the same for every seed: an objective, its settings with all defaults, and its start."""

    name: str
    model: str
    objective: Objective
    settings: Mapping[str, Any]
    init: str
    init_step: int
    init_run: str | None
    seeds: tuple[int, ...]
    final_sets: tuple[str, ...]  # towards which it is probed; none: it is not
    target: bool

    @property
    def family(self) -> str:
        return self.objective.family

    @property
    def steps(self) -> list[int]:
        """Checkpointed steps, ascending; a run that starts from a checkpoint has none before it."""
        return [step for step in self.settings["checkpoints"] if step >= self.init_step]

    @property
    def temperature(self) -> float:
        """τ of the target π_ref exp(r/τ): β of an offline objective, the KL coefficient of online training; 0: none."""
        given = self.objective.parameters if self.family == "offline" else self.settings
        return float(given.get("beta" if self.family == "offline" else "kl_coefficient", 0.0))


@dataclass(frozen=True)
class Experiment:
    """A checked configuration, all defaults filled in, as plain JSON; its runs by (model, name); its judge."""

    config: dict[str, Any]
    runs: Mapping[tuple[str, str], Run]
    judge: Judge
    calls: Calls

    @property
    def evaluations(self) -> int:
        """Judged models: the base models, and every checkpoint of every seed."""
        return len(self.config["models"]) + sum(len(run.steps) * len(run.seeds) for run in self.runs.values())

    def next_step(self, model: str, run: str, step: int) -> int:
        """The run's checkpoint after `step`."""
        steps = self.runs[model, run].steps
        return steps[steps.index(step) + 1]

    def chunks(self, model: str, run: str) -> list[list[int]]:
        """The run's checkpoints in the portions that one job handles."""
        steps = self.runs[model, run].steps
        size = self.config["evaluation"]["checkpoints_per_job"] or len(steps)
        return [steps[i : i + size] for i in range(0, len(steps), size)]


def load(config: Mapping[str, Any]) -> Experiment:
    """Checks a configuration, fills in its defaults and expands its runs.

    Raises:
        InputError: one line naming the key, the value and what is allowed.
    """
    settings = Configuration.of(config)
    judge = _judge(settings)
    runs: dict[tuple[str, str], Run] = {}
    for entry, run in settings.runs.items():
        for model in run.models or settings.models:
            if model not in settings.models:
                raise _bad(f"runs.{entry}.models", model, f"one of {', '.join(settings.models)}")
            for name, parameters in _variants(entry, run):
                if (model, name) in runs:
                    raise InputError(f"configuration: two runs of {model} are called {name!r}; rename one of them")
                runs[model, name] = _run(settings, entry, name, model, parameters)
    for resolved in runs.values():
        _check_start(resolved, runs)
    _check_target(settings, runs)
    _check_distinct(runs.values())
    if settings.validation:
        _check_validation(settings, runs, judge)
    return Experiment(settings.resolved(), runs, judge, settings.evaluation.judging)


def _judge(settings: Configuration) -> Judge:
    calls = settings.evaluation.judging
    judge = _found("evaluation.judge", settings.evaluation.judge, calls)
    check_judge(judge, calls, settings.data.source)
    card = settings.evaluation.report_card
    if card and card.truth:
        check_judge(_found("evaluation.report_card.truth", card.truth, calls), calls, settings.data.source)
    return judge


def _found(key: str, name: str, calls: Calls) -> Judge:
    try:
        return find_judge(name, calls)
    except InputError as error:
        raise InputError(f"configuration key '{key}': {error}") from None


def _bad(key: str, seen: Any, allowed: str) -> InputError:
    return InputError(f"configuration key '{key}' is {seen!r}; it must be {allowed}")


def _variants(entry: str, run: RunEntry) -> Iterator[tuple[str, dict[str, Any]]]:
    """(run name, parameters) of an entry: itself, or one run per item of its sweep, named by what it sets."""
    for item in run.sweep or ({},):
        suffix = "".join(f"_{key}-{value}" for key, value in item.items())
        yield entry + suffix, {**run.parameters, **item}


def _run(settings: Configuration, entry: str, name: str, model: str, parameters: dict[str, Any]) -> Run:
    run = settings.runs[entry]
    try:
        objective = bind(run.objective, parameters)
    except InputError as error:
        raise InputError(f"configuration key 'runs.{entry}': {error}") from None
    if "log_partition" in objective.needs:
        raise _bad(
            f"runs.{entry}.objective",
            run.objective,
            "an objective that needs no log Z of preference prompts, which no stage estimates: rda, rda_posterior, pra "
            "or pra_posterior",
        )
    start = run.init if isinstance(run.init, Start) else None
    return Run(
        name=name,
        model=model,
        objective=objective,
        settings=_training(settings, entry, model, objective.family),
        init="sft" if isinstance(run.init, Start) else run.init,
        init_step=start.step if start else 0,
        init_run=start.run if start else None,
        seeds=run.seeds,
        final_sets=_final_sets(settings, entry, model, objective.family),
        target=settings.target is not None and name in settings.target.runs,
    )


def _final_sets(settings: Configuration, entry: str, model: str, family: str) -> tuple[str, ...]:
    """The sets of final responses that a run of `model` is probed towards."""
    probe, known = settings.runs[entry].probe, getattr(settings.probe.final_sets, family)
    if isinstance(probe, bool):
        return known if probe else ()
    models = settings.runs[entry].models or settings.models
    if unknown := [name for name in probe if name not in models]:
        raise _bad(f"runs.{entry}.probe", unknown[0], f"by a model of this run: {', '.join(models)}")
    if unknown := [name for name in probe.get(model, ()) if name not in known]:
        raise _bad(f"runs.{entry}.probe.{model}", unknown[0], f"one of probe.final_sets.{family}: {', '.join(known)}")
    return probe.get(model, ())


def _training(settings: Configuration, entry: str, model: str, family: str) -> dict[str, Any]:
    """Settings of a run: what its model gives, what it overrides, and defaults for the rest."""
    given = getattr(settings.models[model], family).model_dump(exclude_unset=True)
    overridden = {**given, **settings.runs[entry].training}
    return TRAINING[family].of(overridden, f"runs.{entry}.training").resolved()


def _check_start(run: Run, runs: Mapping[tuple[str, str], Run]) -> None:
    if run.init_run is None:
        return
    parent = runs.get((run.model, run.init_run))
    if parent is None or parent.family != run.family:
        known = [name for (model, name), other in runs.items() if model == run.model and other.family == run.family]
        raise _bad(f"runs.{run.name}.init.run", run.init_run, f"a run of the same family: {', '.join(known)}")
    if run.init_step not in parent.steps:
        raise _bad(f"runs.{run.name}.init.step", run.init_step, f"a checkpoint of {parent.name}: {parent.steps}")
    if missing := set(run.seeds) - set(parent.seeds):
        raise _bad(f"runs.{run.name}.seeds", min(missing), f"a seed of {parent.name}: {list(parent.seeds)}")


def _check_target(settings: Configuration, runs: Mapping[tuple[str, str], Run]) -> None:
    """The runs of the section `target` exist, start from the SFT model, π_ref, and have a target."""
    for name in settings.target.runs if settings.target else ():
        if not any(name == run for _, run in runs):
            raise _bad("target.runs", name, f"a run: {', '.join(dict.fromkeys(run for _, run in runs))}")
    for run in filter(lambda run: run.target, runs.values()):
        if run.init != "sft":
            raise _bad("target.runs", run.name, "a run that starts from the SFT model, which is π_ref here")
        if run.temperature <= 0:
            raise _bad("target.runs", run.name, "a run with a temperature: beta, or a kl_coefficient above 0")


def _check_distinct(runs: Iterable[Run]) -> None:
    """Refuses to train the same twice under two names."""
    known: dict[str, Run] = {}
    for run in runs:
        start = run.init, run.init_run, run.init_step
        same = repr((run.model, canonical(run.objective), sorted(run.settings.items()), start))
        if (other := known.setdefault(same, run)) is not run:
            raise InputError(
                f"configuration: the runs {other.name!r} and {run.name!r} of {run.model} are the same training "
                f"({' and '.join(dict.fromkeys([other.objective.name, run.objective.name]))} with equal parameters, "
                f"settings and start); remove one of them"
            )


def _check_validation(settings: Configuration, runs: Mapping[tuple[str, str], Run], judge: Judge) -> None:
    """An interval is trained again at the rates of the run, from a checkpoint with optimizer state to the next one."""
    assert settings.validation is not None
    if judge.remote or judge.in_process:
        raise _bad("evaluation.judge", settings.evaluation.judge, "a judge that is a function, where G is validated")
    for name, steps in settings.validation.left_out.items():
        key = f"validation.left_out.{name}"
        for model in settings.models:
            run = _validated(key, name, model, runs)
            if run.settings["lr_schedule"] != "constant":
                raise _bad(
                    f"{key}: lr_schedule", run.settings["lr_schedule"], "constant, or the intervals' rates differ"
                )
            inner = [step for step in run.steps[:-1] if step >= _warmup(run) and step]
            if other := [step for step in steps if step not in inner]:
                raise _bad(key, other[0], f"a checkpoint after the warm-up and before the last: {inner}")
    for model in settings.models:
        halved = _validated("validation.halves.run", settings.validation.halves.run, model, runs)
        if halved.family != "offline":
            raise _bad("validation.halves.run", halved.name, "a run of preference pairs")


def _validated(key: str, name: str, model: str, runs: Mapping[tuple[str, str], Run]) -> Run:
    of_model = [run for (of, _), run in runs.items() if of == model and not run.init_run]
    known = {run.name: run for run in of_model if "heldout" in run.final_sets and is_uncontrolled(run.objective.name)}
    if name not in known:
        allowed = f"a run of {' or '.join(UNCONTROLLED.values())}, probed with held-out prompts"
        raise _bad(key, name, f"{allowed}; of {model}: {', '.join(known) or 'none'}")
    return known[name]


def _warmup(run: Run) -> int:
    """Steps of the rising learning rate."""
    return math.ceil(run.settings.get("warmup_ratio", 0.0) * run.settings["max_steps"])

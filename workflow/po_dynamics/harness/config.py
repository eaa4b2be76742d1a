"""Configuration: validate it, and expand runs × sweeps × models × seeds.

Runs are data: an entry names an objective of `objectives.OBJECTIVES`, its parameters and what it overrides. The
Snakefile calls this module in every process it starts, so nothing heavy is imported here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, relevance

from po_dynamics.errors import InputError
from po_dynamics.objectives.registry import bind

SCHEMA = Path(__file__).parents[2] / "schemas" / "config.schema.yaml"


@dataclass(frozen=True)
class Run:
    """One training run, the same for every seed: an objective, its parameters, its settings and its start."""

    name: str
    model: str
    objective: str
    family: str
    parameters: Mapping[str, Any]
    settings: Mapping[str, Any]
    init: str
    init_step: int
    init_run: str | None
    seeds: tuple[int, ...]
    probe: bool

    @property
    def steps(self) -> list[int]:
        """Checkpointed steps, ascending; a run that starts from a checkpoint has none before it."""
        return [step for step in self.settings["checkpoints"] if step >= self.init_step]


@dataclass(frozen=True)
class Experiment:
    """A validated configuration with its runs by (model, name)."""

    config: Mapping[str, Any]
    runs: Mapping[tuple[str, str], Run]

    def chunks(self, model: str, run: str) -> list[list[int]]:
        """The run's checkpoints in the portions that one job handles."""
        steps = self.runs[model, run].steps
        size = self.config["evaluation"]["checkpoints_per_job"] or len(steps)
        return [steps[i : i + size] for i in range(0, len(steps), size)]


def load(config: Mapping[str, Any]) -> Experiment:
    """Validates a configuration and expands its runs.

    Raises:
        InputError: one line naming the key, the value and what is allowed.
    """
    validate(config)
    runs: dict[tuple[str, str], Run] = {}
    for entry, run in config["runs"].items():
        for model in run.get("models", config["models"]):
            if model not in config["models"]:
                raise _bad(f"runs.{entry}.models", model, f"one of {', '.join(config['models'])}")
            for name, parameters in _variants(entry, run):
                if (model, name) in runs:
                    raise InputError(f"configuration: two runs of {model} are called {name!r}; rename one of them")
                runs[model, name] = _run(config, entry, name, model, parameters)
    for resolved in runs.values():
        _check_start(resolved, runs)
    return Experiment(config, runs)


def validate(config: Mapping[str, Any]) -> None:
    """Checks a configuration against the JSON schema; raises InputError for the most telling violation."""
    errors = list(_validator().iter_errors(config))
    if errors:
        raise InputError(_describe(max(errors, key=relevance)))


@functools.cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(yaml.safe_load(SCHEMA.read_text()))


def _describe(error: ValidationError) -> str:
    while error.context:  # of an anyOf, the branch that came closest says most
        error = max(error.context, key=lambda e: (len(e.absolute_path), relevance(e)))
    schema: dict[str, Any] = dict(error.schema)  # type: ignore[arg-type]
    seen: Any = error.instance
    rule, limit = str(error.validator), error.validator_value
    key = ".".join(map(str, error.absolute_path))
    if rule == "additionalProperties":
        known, free = sorted(schema.get("properties", {})), "|".join(schema.get("patternProperties", {"(?!)": None}))
        unknown = next(k for k in seen if k not in known and not re.search(free, k))
        return f"configuration key '{_join(key, unknown)}' is unknown; allowed here: {', '.join(known)}"
    if rule == "required":
        return f"configuration key '{_join(key, next(k for k in schema['required'] if k not in seen))}' is missing"
    allowed = {
        "enum": f"one of {', '.join(map(str, schema.get('enum', [])))}",
        "type": f"of type {limit}",
        "minimum": f"at least {limit}",
        "exclusiveMinimum": f"greater than {limit}",
        "maximum": f"at most {limit}",
    }
    return str(_bad(key, seen, allowed.get(rule, error.message)))


def _join(*keys: str) -> str:
    return ".".join(filter(None, map(str, keys)))


def _bad(key: str, seen: Any, allowed: str) -> InputError:
    return InputError(f"configuration key '{key}' is {seen!r}; it must be {allowed}")


def _variants(entry: str, run: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(run name, parameters) of an entry: itself, or one run per item of its sweep, named by what it sets."""
    for item in run.get("sweep", [{}]):
        suffix = "".join(f"_{key}-{value}" for key, value in item.items())
        yield entry + suffix, {**run.get("parameters", {}), **item}


def _run(config: Mapping[str, Any], entry: str, name: str, model: str, parameters: dict[str, Any]) -> Run:
    run = config["runs"][entry]
    try:
        objective = bind(run["objective"], parameters)
    except InputError as error:
        raise InputError(f"configuration key 'runs.{entry}': {error}") from None
    defaults = config["models"][model][objective.family]
    overrides = run.get("training", {})
    for key in overrides:
        if key not in defaults:
            allowed = ", ".join(sorted(defaults))
            raise InputError(f"configuration key 'runs.{entry}.training.{key}' is unknown; allowed here: {allowed}")
    settings = {**defaults, **overrides}
    late = [step for step in settings["checkpoints"] if step > settings["max_steps"]]
    if late:
        raise _bad(f"runs.{entry}: checkpoints", late[0], f"at most max_steps, {settings['max_steps']}")
    init = run.get("init", "sft")
    start = init if isinstance(init, dict) else {}
    return Run(
        name=name,
        model=model,
        objective=run["objective"],
        family=objective.family,
        parameters=parameters,
        settings={**settings, "checkpoints": sorted(settings["checkpoints"])},
        init="sft" if start else init,
        init_step=start.get("step", 0),
        init_run=start.get("run"),
        seeds=tuple(run.get("seeds", [0])),
        probe=run.get("probe", False),
    )


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

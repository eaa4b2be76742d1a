"""How an objective is declared and bound: family, parameters with their bounds, a checked callable. No torch."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_type_hints

from po_dynamics.errors import InputError

Function = TypeVar("Function", bound=Callable[..., Any])
DECLARED: dict[str, Declaration] = {}
_SIGNS = {"above": (">", operator.gt), "at_least": ("≥", operator.ge), "at_most": ("≤", operator.le)}


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED = _Required()  # the "default" of a parameter that a configuration must give


class Bounds(NamedTuple):
    """What a parameter may be, beside finite; a bound that is a string names another parameter."""

    above: float | str | None = None
    at_least: float | str | None = None
    at_most: float | str | None = None


Positive = Annotated[float, Bounds(above=0)]
NonNegative = Annotated[float, Bounds(at_least=0)]
Fraction = Annotated[float, Bounds(at_least=0, at_most=1)]


class Parameter(NamedTuple):
    """A keyword-only argument of an objective; `default` is REQUIRED where a configuration must give it."""

    default: Any
    bounds: tuple[Bounds, ...]


@dataclass(frozen=True)
class Declaration:
    """An objective before its parameters are known."""

    name: str
    family: str  # offline: Pairs → PairTerms | online: Tokens → TokenTerms
    function: Callable[..., Any]
    parameters: Mapping[str, Parameter]  # by configuration key
    grouped: bool  # online: its advantages compare the responses to one prompt
    needs: tuple[str, ...]  # offline: what it reads of a pair beside log-probs: "rewards", "log_partition"

    def bind(self, parameters: Mapping[str, Any]) -> Objective:
        """The objective with these parameters; InputError naming unknown and missing keys and impossible values."""
        allowed = ", ".join(self.parameters) or "none"
        if unknown := sorted(set(parameters) - set(self.parameters)):
            raise InputError(f"{self.name}: unknown parameter {', '.join(map(str, unknown))} (allowed: {allowed})")
        required = [key for key, parameter in self.parameters.items() if parameter.default is REQUIRED]
        if missing := [key for key in required if key not in parameters]:
            raise InputError(f"{self.name}: missing parameter {', '.join(missing)} (allowed: {allowed})")
        for key in filter(parameters.__contains__, self.parameters):
            for bounds in self.parameters[key].bounds or (Bounds(),):
                self._check(key, parameters[key], bounds, parameters)
        return Objective(self, dict(parameters))

    def _check(self, key: str, value: Any, bounds: Bounds, parameters: Mapping[str, Any]) -> None:
        inside = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        domain = []
        for kind, bound in bounds._asdict().items():
            if bound is None:
                continue
            sign, holds = _SIGNS[kind]
            limit = parameters[bound] if isinstance(bound, str) else bound
            domain.append(f"{sign} {limit}" + (f" ({bound})" if isinstance(bound, str) else ""))
            inside = inside and holds(value, limit)
        if not inside:
            allowed = " and ".join(domain)
            raise InputError(f"{self.name}: {key} is {value!r}, but must be a finite number {allowed}".rstrip())


@dataclass(frozen=True)
class Objective:
    """An objective with checked parameters: calling it gives the detached terms of a batch at step t.

    t counts completed optimizer steps (offline) or updates (online); schedules of the step are inside.
    """

    declaration: Declaration
    parameters: Mapping[str, Any]  # as given, without the defaults

    @property
    def name(self) -> str:
        return self.declaration.name

    @property
    def family(self) -> str:
        return self.declaration.family

    @property
    def grouped(self) -> bool:
        """Whether its advantages compare the responses to one prompt."""
        return self.declaration.grouped

    @property
    def needs(self) -> tuple[str, ...]:
        """What it reads of a pair beside log-probs: "rewards", "log_partition" (log Z of the prompt)."""
        return self.declaration.needs

    def __call__(self, batch: Any, step: int) -> Any:
        """`PairTerms` of `Pairs`, or `TokenTerms` of `Tokens`."""
        arguments = {"lambda_" if key == "lambda" else key: value for key, value in self.parameters.items()}
        return self.declaration.function(_detached(batch), step, **arguments)


def _detached(batch: Any) -> Any:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return replace(batch, **{key: value.detach() for key, value in values.items() if hasattr(value, "detach")})


def _declare(family: str, function: Function, grouped: bool = False, needs: tuple[str, ...] = ()) -> Function:
    hints = get_type_hints(function, include_extras=True)
    parameters = {}
    for argument in inspect.signature(function).parameters.values():
        if argument.kind is argument.KEYWORD_ONLY:
            default = REQUIRED if argument.default is argument.empty else argument.default
            bounds = tuple(hint for hint in get_args(hints[argument.name])[1:] if isinstance(hint, Bounds))
            parameters[argument.name.rstrip("_")] = Parameter(default, bounds)
    DECLARED[function.__name__] = Declaration(function.__name__, family, function, parameters, grouped, needs)
    return function


def offline(function: Function) -> Function:
    """Declares an objective of preference pairs."""
    return _declare("offline", function)


def offline_rewarded(function: Function) -> Function:
    """Declares an objective of preference pairs whose two rewards are known."""
    return _declare("offline", function, needs=("rewards",))


def offline_partitioned(function: Function) -> Function:
    """Declares an objective of preference pairs whose two rewards and log Z are known."""
    return _declare("offline", function, needs=("rewards", "log_partition"))


def online(function: Function) -> Function:
    """Declares an objective of rolled-out tokens."""
    return _declare("online", function)


def online_grouped(function: Function) -> Function:
    """Declares an objective of rolled-out tokens whose advantages compare the responses to one prompt."""
    return _declare("online", function, grouped=True)

"""The registry of objectives: names, parameters and their checks. No torch: configurations are validated with it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from po_dynamics.errors import InputError

Function = TypeVar("Function", bound=Callable[..., Any])


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED = _Required()  # the "default" of a parameter that a configuration must give
OBJECTIVES: dict[str, Objective] = {}
_AT_LEAST = dict.fromkeys(["t1", "t2", "before", "after", "at", "alpha", "lambda", "desirable", "undesirable"], 0)
_ABOVE = dict.fromkeys(["beta", "epsilon", "epsilon_high", "t3", "tau"], 0)
_AT_MOST = {"lambda": 1}


@dataclass(frozen=True)
class Objective:
    """An entry of the registry; calling it gives detached terms: `OBJECTIVES["dpo"](pairs, step, beta=0.1)`."""

    name: str
    family: str  # offline: Pairs → PairTerms | online: Tokens → TokenTerms
    function: Callable[..., Any]
    parameters: Mapping[str, Any]  # configuration key → default, or REQUIRED

    def __call__(self, terms: Any, step: int, **parameters: Any) -> Any:
        """Terms of the batch at step t (completed optimizer steps or updates), `lambda` being a legal keyword here."""
        values = {key: value for key, value in self.parameters.items() if value is not REQUIRED} | parameters
        arguments = {"lambda_" if key == "lambda" else key: value for key, value in values.items()}
        return self.function(_detached(terms), step, **arguments)

    def check(self, parameters: Mapping[str, Any]) -> None:
        """InputError naming unknown keys, missing keys and impossible values, and what is allowed."""
        allowed = ", ".join(self.parameters) or "none"
        if unknown := sorted(set(parameters) - set(self.parameters)):
            raise InputError(f"{self.name}: unknown parameter {', '.join(map(str, unknown))} (allowed: {allowed})")
        required = [key for key, default in self.parameters.items() if default is REQUIRED]
        if missing := [key for key in required if key not in parameters]:
            raise InputError(f"{self.name}: missing parameter {', '.join(missing)} (allowed: {allowed})")
        for key, value in parameters.items():
            self._check_value(key, value)
        if {"t1", "t2"} <= set(self.parameters) and parameters["t1"] > parameters["t2"]:
            raise InputError(f"{self.name}: t1 = {parameters['t1']} must not be above t2 = {parameters['t2']}")

    def _check_value(self, key: str, value: Any) -> None:
        bounds = {">": _ABOVE.get(key), "≥": _AT_LEAST.get(key), "≤": _AT_MOST.get(key)}
        inside = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        for sign, bound in bounds.items():
            if inside and bound is not None:
                inside = {">": value > bound, "≥": value >= bound, "≤": value <= bound}[sign]
        if not inside:
            domain = " and ".join(f"{sign} {bound}" for sign, bound in bounds.items() if bound is not None)
            raise InputError(f"{self.name}: {key} is {value!r}, but must be a finite number {domain}".rstrip())


def _detached(terms: Any) -> Any:
    values = {field.name: getattr(terms, field.name) for field in fields(terms)}
    return replace(terms, **{key: value.detach() for key, value in values.items() if hasattr(value, "detach")})


def get(name: str) -> Objective:
    """The objective of that name; InputError listing the known ones."""
    if name not in OBJECTIVES:
        raise InputError(f"unknown objective {name!r} (known: {', '.join(sorted(OBJECTIVES))})")
    return OBJECTIVES[name]


def _register(family: str, function: Function) -> Function:
    keywords = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    parameters = {p.name.rstrip("_"): REQUIRED if p.default is p.empty else p.default for p in keywords}
    OBJECTIVES[function.__name__] = Objective(function.__name__, family, function, parameters)
    return function


def offline(function: Function) -> Function:
    """Registers an objective of preference pairs."""
    return _register("offline", function)


def online(function: Function) -> Function:
    """Registers an objective of rolled-out tokens."""
    return _register("online", function)

"""The objectives by name. No torch: configurations are validated with this registry.

A new objective is one function under `@offline` (in `pairs`, or `rewards` if it needs them) or `@online` (`tokens`);
nothing else has to know it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from po_dynamics.errors import InputError
from po_dynamics.objectives import pairs, rewards, tokens  # noqa: F401 (importing them declares their objectives)
from po_dynamics.objectives.declaration import DECLARED, Declaration, Objective

OBJECTIVES: Mapping[str, Declaration] = DECLARED
# Objectives that are another one with some parameters fixed; the rest of their parameters are the same.
SPECIAL_CASES: Mapping[str, tuple[str, Mapping[str, float]]] = {
    "ppo_no_top": ("cppo_top", {"lambda": 0.0}),
    "ppo_no_mid": ("cppo_mid", {"lambda": 0.0}),
}


def bind(name: str, parameters: Mapping[str, Any] | None = None, family: str | None = None) -> Objective:
    """The objective `name` with these parameters, ready to be called with a batch and a step.

    Raises:
        InputError: an unknown name, one of the other family, unknown, missing or impossible parameters.
    """
    if name not in OBJECTIVES:
        raise InputError(f"unknown objective {name!r} (known: {', '.join(sorted(OBJECTIVES))})")
    declaration = OBJECTIVES[name]
    if family not in (None, declaration.family):
        known = ", ".join(sorted(key for key, other in OBJECTIVES.items() if other.family == family))
        raise InputError(f"{name} is an {declaration.family} objective; here an {family} one is needed: {known}")
    return declaration.bind(parameters or {})


def canonical(objective: Objective) -> tuple[str, dict[str, float]]:
    """Name and all parameters, defaults too; two objectives with the same are one, whatever they are called."""
    defaults = {key: parameter.default for key, parameter in objective.declaration.parameters.items()}
    name, fixed = SPECIAL_CASES.get(objective.name, (objective.name, {}))
    return name, {**defaults, **objective.parameters, **fixed}

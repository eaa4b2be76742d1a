"""The two families of objectives, and which run of each is uncontrolled: what its variants are compared with.

Statistics, figures and the report all need this and share nothing else, so it stands below them. It is data about
objectives and imports nothing, neither pandas nor matplotlib.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Runs = Mapping[str, Mapping[str, Any]]  # run name → objective, family, parameters, init_step, as configured

UNCONTROLLED = {"offline": "dpo", "online": "ppo"}  # family → the objective that its variants control or ablate


def is_uncontrolled(objective: str) -> bool:
    """Whether runs with this objective are compared with SFT alone."""
    return objective in UNCONTROLLED.values()


def uncontrolled_run(family: str, runs: Runs) -> str | None:
    """The first run with the family's uncontrolled objective; None when there is none."""
    return next((name for name, run in runs.items() if run["objective"] == UNCONTROLLED[family]), None)


def parent_of(run: str, runs: Runs) -> str | None:
    """The run that `run` is a variant of: its family's uncontrolled run; None when there is none, and for itself."""
    parent = uncontrolled_run(runs[run]["family"], runs)
    return None if parent == run else parent

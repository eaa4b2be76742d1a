"""Probe tables on disk: which there are, and what checkpoint each is of, as its path says."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from po_dynamics.dynamics import tables
from po_dynamics.dynamics.alignment import KEYS, Probe
from po_dynamics.errors import InputError
from po_dynamics.storage import layout


def find(results: Path) -> list[tuple[dict[str, Any], Path]]:
    """Probed checkpoints below results/<experiment>, sorted: keys and folder.

    Raises:
        InputError: there is none.
    """
    found = layout.find(f"{layout.PROBED_STEP}/scores.parquet", results)
    if not found:
        raise InputError(
            f"{results} holds no probe (…/<model>/<run>/seed<n>/probe/<final_set>/step-<t>/scores.parquet)"
        )
    return _sorted((wildcards, path.parent) for wildcards, path in found)


def steps_of(folders: Iterable[str]) -> list[tuple[dict[str, Any], Path]]:
    """The probed checkpoints in the given folders of `layout.PROBE`, and in no other: keys and folder, sorted."""
    steps = [step for folder in folders for step in Path(folder).glob("step-*")]
    return _sorted((layout.parse(step, layout.PROBED_STEP), step) for step in steps)


def load(keys: dict[str, Any], folder: Path) -> Probe:
    """Tables of one probed checkpoint; InputError where they do not belong together."""
    return Probe(keys, tables.read(folder))


def _sorted(found: Iterable[tuple[dict[str, str], Path]]) -> list[tuple[dict[str, Any], Path]]:
    numbers = ("seed", "step")
    typed = [({k: int(named[k]) if k in numbers else named[k] for k in KEYS}, path) for named, path in found]
    return sorted(typed, key=lambda item: tuple(item[0].values()))

"""What the reverse pass measured of each mini-batch: norms and dot products of components, in segments of the model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from po_dynamics.dynamics.segments import ALL
from po_dynamics.dynamics.tables import Tables


class Part(NamedTuple):
    """What the reverse pass measured of a component in a segment, by mini-batch; nan where it did not."""

    dot: np.ndarray
    norm: np.ndarray
    v_norm: float
    u_norm: float  # of the component's gradient on the whole of D


class Reverse(NamedTuple):
    """Measured parts by (component, segment), the whole under ALL; ‖v‖ of the segments."""

    parts: dict[tuple[str, str], Part]
    v_norms: dict[str, float]

    @classmethod
    def of(cls, content: Tables, n_B: pd.Series, partition: Mapping[str, Sequence[str]]) -> Reverse:
        """Joins the units that were measured (embeddings, single layers, head) to the segments of `partition`.

        The gradients of different units have no parameter in common, so inner products and squared norms add up.
        """
        measured = _measured(content.batches, n_B)
        v_norms, u_norms = content.metadata["v_norms"], content.metadata["u_norms"]
        segments = {ALL: [ALL], **partition}
        parts = {}
        by_segment = {component for component, unit in measured if unit != ALL}
        for component in dict.fromkeys(component for component, _ in measured):
            for segment, held in (segments if component in by_segment else {ALL: [ALL]}).items():
                found = [measured[component, unit] for unit in held if (component, unit) in measured]
                norms = (_norm(of, held) for of in (v_norms, u_norms[component]))
                parts[component, segment] = _join(found, len(n_B), *norms)
        return cls(parts, {name: _norm(v_norms, held) for name, held in partition.items()})


def _norm(norms: Mapping[str, float], units: Iterable[str]) -> float:
    return math.sqrt(sum(norms.get(unit, 0.0) ** 2 for unit in units))


def _measured(batches: pd.DataFrame, n_B: pd.Series) -> dict[tuple[str, str], pd.DataFrame]:
    """Rows of the reverse pass by (component, unit), mini-batches in the order of `n_B`."""
    rows = batches[(batches["set"] == "train") & batches["grad_norm"].notna()]
    groups = rows.groupby(["component", "segment"], sort=False)
    return {
        (str(component), str(unit)): group.set_index("batch").reindex(n_B.index) for (component, unit), group in groups
    }


def _join(units: Sequence[pd.DataFrame], count: int, v_norm: float, u_norm: float) -> Part:
    """The sum over units, by mini-batch; an empty segment has 0."""
    dots = np.asarray(sum((unit["dot"] for unit in units), np.zeros(count)))
    squares = np.asarray(sum((unit["grad_norm"] ** 2 for unit in units), np.zeros(count)))
    return Part(dots, np.sqrt(squares), v_norm, u_norm)


def within_fence(norms: np.ndarray, fence: float) -> np.ndarray:
    """False for outliers: norms above Q3 + fence · (Q3 − Q1)."""
    q1, q3 = np.quantile(norms, [0.25, 0.75])
    return np.asarray(norms <= q3 + fence * (q3 - q1))

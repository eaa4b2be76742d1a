"""Parts of captions that several figures share: numbers, seeds, paragraphs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd


def plural(count: int, noun: str) -> str:
    """`1 step`, `2,000 steps`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def span(values: pd.Series) -> str:
    """The value, or "low to high"."""
    low, high = values.min(), values.max()
    return f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"


def seeds(values: Iterable[int]) -> str:
    """How many seeds, and which."""
    ordered = sorted(set(values))
    return f"one seed ({ordered[0]})" if len(ordered) == 1 else f"{len(ordered)} seeds ({', '.join(map(str, ordered))})"


def number(value: float) -> str:
    """Two decimals and a true minus."""
    return "not known" if math.isnan(value) else f"{value:.2f}".replace("-", "−")


def with_interval(value: float, low: float, high: float) -> str:
    """`0.81 (0.50 to 0.95)`, without what is not known."""
    return number(value) + ("" if math.isnan(low) else f" ({number(low)} to {number(high)})")


def paragraphs(*texts: str) -> str:
    """One line per text: line breaks and indentation of the source become single spaces."""
    return "\n".join(" ".join(text.split()) for text in texts).strip()


def signs(resolution: pd.DataFrame, components: Sequence[str] = ("TOT", "POS", "NEG")) -> str:
    """Of which components of one run the sign of G is known, and what the others would need, from `resolution.csv`."""
    parts = []
    for row in resolution[resolution["component"].isin(components)].to_dict("records"):
        known = f"{row['component']}: known at {row['known']} of {row['checkpoints']}"
        if row["known"] < row["checkpoints"]:
            known += f", {_needed(row['needed'], row['needed_low'], row['needed_high'])}"
        parts.append(known)
    return "; ".join(parts)


def _needed(needed: float, low: float, high: float) -> str:
    """`half of them would need about 300 samples a side (100 to 900)`."""
    if not np.isfinite(needed):
        return "where G is 0 no number of samples tells"
    span = f"{low:,.0f} to {high:,.0f}" if np.isfinite(high) else f"at least {low:,.0f}"
    return f"half of the checkpoints would need {needed:,.0f} samples a side ({span})"

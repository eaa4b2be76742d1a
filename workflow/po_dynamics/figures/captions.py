"""Parts of captions that several figures share: numbers, seeds, paragraphs."""

from __future__ import annotations

from collections.abc import Iterable

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


def paragraphs(*texts: str) -> str:
    """One line per text: line breaks and indentation of the source become single spaces."""
    return "\n".join(" ".join(text.split()) for text in texts).strip()

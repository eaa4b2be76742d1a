"""Which rows of a table a figure draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from po_dynamics.errors import InputError


def select(table: pd.DataFrame, wanted: Mapping[str, Any], name: str) -> pd.DataFrame:
    """The rows with these values, by seed and step.

    Raises:
        InputError: no such column or row; it names what was seen. `name` is what the message calls the table.
    """
    chosen = table
    for column, value in wanted.items():
        if column not in table:
            raise InputError(f"{name}: no column {column}; seen: {', '.join(map(str, table.columns))}")
        seen = chosen[column].unique().tolist()
        chosen = chosen[chosen[column] == value]
        if chosen.empty:
            raise InputError(f"{name}: no row with {column} = {value}; seen: {', '.join(map(str, seen)) or 'no rows'}")
    return chosen.sort_values([column for column in ("seed", "step") if column in chosen])


def by_seed(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Steps (rows) × seeds, of the steps that every seed has."""
    return table.pivot(index="step", columns="seed", values=column).dropna().sort_index()

"""Parquet tables, read with checks and written atomically."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from po_dynamics.errors import InputError


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a Parquet file with at least these columns; InputError when one is missing or there is no row."""
    if not Path(path).is_file():
        raise InputError(f"{path} does not exist")
    present = pq.read_schema(path).names
    if missing := [column for column in columns if column not in present]:
        raise InputError(f"{path} has no column {', '.join(missing)} (found: {', '.join(present)})")
    rows = pq.read_table(path, columns=list(columns)).to_pylist()
    if not rows:
        raise InputError(f"{path} is empty")
    return rows

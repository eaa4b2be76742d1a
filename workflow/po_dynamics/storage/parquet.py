"""The one way that tables are read, with checks, and written, atomically."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from po_dynamics.errors import InputError
from po_dynamics.storage.atomic import atomic_file

if TYPE_CHECKING:
    import pandas as pd


def read_table(path: Path | str, columns: Sequence[str], optional: Sequence[str] = ()) -> pa.Table:
    """These columns of a Parquet file, and of the `optional` ones those that are there.

    Raises:
        InputError: no such file, not Parquet, a column is missing, no rows.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; run the stage that writes it")
    try:
        present = pq.read_schema(path).names
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is not a Parquet file ({' '.join(str(error).split())}); write it again") from None
    if missing := [column for column in columns if column not in present]:
        raise InputError(f"{path} has no column {', '.join(missing)} (columns present: {', '.join(present)})")
    table = pq.read_table(path, columns=[*columns, *(column for column in optional if column in present)])
    if not table.num_rows:
        raise InputError(f"{path} is empty; it needs at least one row")
    return table


def read_rows(path: Path | str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """As `read_table`, row by row as Python values."""
    rows: list[dict[str, Any]] = read_table(path, columns).to_pylist()
    return rows


def write_table(table: pa.Table, path: Path) -> None:
    """Writes a table, atomically."""
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary)


def write_frame(frame: pd.DataFrame, path: Path) -> None:
    """Writes a data frame without its index, atomically."""
    write_table(pa.Table.from_pandas(frame, preserve_index=False), path)

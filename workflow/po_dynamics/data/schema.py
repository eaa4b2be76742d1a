"""The common schema of the four data sets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from po_dynamics.storage.atomic import atomic_file

Row = dict[str, Any]


_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


COLUMNS = {
    "sft": ("prompt", "completion"),
    "preferences": ("prompt", "chosen", "rejected"),
    "final_prompts": ("prompt",),
    "eval_prompts": ("prompt",),
}


def write_rows(rows: Iterable[Row], path: Path, columns: Sequence[str]) -> int:
    """Writes `id` and columns of messages, atomically and in chunks; returns the number of rows."""
    schema = pa.schema([("id", pa.string()), *((column, _MESSAGES) for column in columns)])
    iterator, count = iter(rows), 0
    with atomic_file(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        while chunk := list(islice(iterator, 4096)):
            writer.write_table(pa.Table.from_pylist(chunk, schema))
            count += len(chunk)
    return count

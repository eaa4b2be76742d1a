"""Tables that are read where they lie: Arrow files, mapped into memory, whose rows cost nothing until they are used."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from po_dynamics.errors import InputError
from po_dynamics.storage.atomic import atomic_file


def write_mapped(batches: Iterable[pa.RecordBatch], schema: pa.Schema, path: Path, about: Mapping[str, Any]) -> None:
    """Writes record batches as they come, atomically, and last what is known `about` them then (JSON)."""
    with atomic_file(path) as temporary, pa.ipc.new_file(str(temporary), schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
        last = {"about": json.dumps(about, sort_keys=True)}
        writer.write_batch(pa.RecordBatch.from_pylist([], schema), custom_metadata=last)


def open_mapped(path: Path | str, columns: Sequence[str]) -> tuple[pa.Table, dict[str, Any]]:
    """The rows of `write_mapped`, mapped into memory, and what it was told about them.

    Raises:
        InputError: no such file, not of this format, a column is missing, no rows.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; run the stage that writes it")
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        last = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
        about: dict[str, Any] = json.loads(last.custom_metadata["about"])
    except (pa.ArrowInvalid, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not a whole table of rows ({reason}); write it again") from None
    if missing := [column for column in columns if column not in reader.schema.names]:
        present = ", ".join(reader.schema.names)
        raise InputError(f"{path} has no column {', '.join(missing)} (columns present: {present})")
    table = reader.read_all()
    if not table.num_rows:
        raise InputError(f"{path} is empty; it needs at least one row")
    return table, about

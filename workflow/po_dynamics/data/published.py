"""Published data sets (from the hub or local folders in its format), written in the common schema."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from po_dynamics.data import sources
from po_dynamics.data.schema import COLUMNS, Row, write_rows
from po_dynamics.errors import InputError
from po_dynamics.storage.atomic import atomic_folder

_CONVERTERS: dict[str, tuple[tuple[tuple[str, ...], ...], Callable[[Row], Row | None]]] = {
    "sft": ((("prompt", "completion"), ("messages",)), sources.sft_row),
    "preferences": ((("chosen", "rejected"),), sources.preference_row),
    "final_prompts": ((("instruction",), ("prompt",), ("messages",), ("chosen",)), sources.prompt_row),
    "eval_prompts": ((("instruction",), ("prompt",), ("messages",), ("chosen",)), sources.prompt_row),
}


def download_data(output: Path, settings: Mapping[str, Any]) -> None:
    """Writes the four data sets of `settings` (config `data`, source hub) to the folder `output`.

    `limit` of a data set keeps that many rows, drawn with `seed`. Unusable rows (equal or empty answers, no question, a
    prompt above `max_prompt_characters`) are left out and counted on standard error. Prompts of D′ and of the judge are
    kept once each.

    Raises:
        InputError: a data set that cannot be loaded, lacks its columns, has another SHA-256 or no usable row.
    """
    with atomic_folder(output) as folder:
        for name, columns in COLUMNS.items():
            source = settings[name]
            data = sources.load_source(source, f"data.{name}")
            schemas, convert = _CONVERTERS[name]
            _require_columns(data.column_names, schemas, f"data.{name}: {source['path']}")
            indices: Sequence[int] = range(len(data))
            if source.get("limit") and source["limit"] < len(data):
                indices = sorted(random.Random(f"{name}/{settings['seed']}").sample(indices, source["limit"]))
            longest = source.get("max_prompt_characters") or math.inf
            rows = (row for row in _converted(data, indices, name, convert) if _characters(row["prompt"]) <= longest)
            count = write_rows(rows, folder / f"{name}.parquet", columns)
            if not count:
                raise InputError(f"data.{name}: {source['path']} has no usable row")
            print(f"data.{name}: {count} of {len(indices)} rows of {source['path']} are usable", file=sys.stderr)


def _characters(messages: Sequence[Mapping[str, str]]) -> int:
    return sum(len(message["content"]) for message in messages)


def _require_columns(present: Sequence[str], schemas: Sequence[Sequence[str]], what: str) -> None:
    if not any(set(schema) <= set(present) for schema in schemas):
        wanted = " or ".join(" and ".join(schema) for schema in schemas)
        raise InputError(f"{what} has no column {wanted} (columns present: {', '.join(present)})")


def _converted(data: Any, indices: Iterable[int], name: str, convert: Callable[[Row], Row | None]) -> Iterator[Row]:
    """Usable rows in the common schema, with ids that name the row of the source."""
    seen: set[str] = set()
    for index in tqdm(indices, desc=f"data.{name}", unit="row", mininterval=5):
        row = convert(data[index])
        if row is None:
            continue
        if name.endswith("_prompts"):
            text = repr(row["prompt"])
            if text in seen:
                continue
            seen.add(text)
        yield {"id": f"{name.removesuffix('_prompts')}-{index:06d}", **row}

"""Published data sets (from the hub or local folders in its format), written in the common schema."""

from __future__ import annotations

import hashlib
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from po_dynamics.data import conversion, sources
from po_dynamics.data.schema import COLUMNS, SOURCES, Row, fault, write_rows
from po_dynamics.errors import InputError
from po_dynamics.storage.atomic import atomic_folder, write_json

_CONVERTERS: dict[str, tuple[tuple[tuple[str, ...], ...], Callable[[Row], conversion.Converted]]] = {
    "sft": (conversion.SFT_COLUMNS, conversion.sft_row),
    "preferences": (conversion.PREFERENCE_COLUMNS, conversion.preference_row),
    "final_prompts": (conversion.PROMPT_COLUMNS, conversion.prompt_row),
    "eval_prompts": (conversion.PROMPT_COLUMNS, conversion.prompt_row),
}


def download_data(output: Path, settings: Mapping[str, Any]) -> None:
    """Writes the four data sets of `settings` (config `data`, source hub) to the folder `output`, and `sources.json`.

    `limit` of a data set keeps that many usable rows, drawn with `seed`. Rows that no model could use (see
    `schema.fault`; also those without question or answer) are left out and counted by reason. Prompts of D′ and of the
    judge are kept once each.

    Raises:
        InputError: a data set that cannot be loaded, lacks its columns, has another SHA-256 or no usable row; a row
            whose columns hold something else than texts and messages.
    """
    with atomic_folder(output) as folder:
        about = {name: _download(name, settings[name], f"{name}/{settings['seed']}", folder) for name in COLUMNS}
        write_json(folder / SOURCES, about)


def _download(name: str, source: Mapping[str, Any], seed: str, folder: Path) -> dict[str, Any]:
    """Writes one data set; returns its entry of `sources.json`."""
    source, (schemas, convert) = sources.pinned(source), _CONVERTERS[name]
    data = sources.load_source(source, f"data.{name}")
    _require_columns(data.column_names, schemas, f"data.{name}: {source['path']}")
    fates: Counter[str | None] = Counter()
    usable = _usable(_drawn(data, source.get("limit"), seed, name), name, convert, fates)
    rows: Iterable[Row] = usable
    if source.get("limit"):
        rows = sorted(islice(usable, source["limit"]), key=lambda row: str(row["id"]))
    path = folder / f"{name}.parquet"
    used = write_rows(rows, path, COLUMNS[name])
    read, dropped = sum(fates.values()), {str(reason): n for reason, n in fates.items() if reason}
    reasons = "".join(f"; {reason}: {n}" for reason, n in sorted(dropped.items()))
    if not used:
        raise InputError(f"data.{name}: {source['path']} has no usable row{reasons}")
    print(f"data.{name}: {used} of {read} rows of {source['path']} are usable{reasons}", file=sys.stderr)
    where = {key: source.get(key) for key in ("path", "name", "split", "data_dir", "data_files", "revision")}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return where | {"rows": read, "used": used, "dropped": dropped, "sha256": digest}


def _require_columns(present: Sequence[str], schemas: Sequence[Sequence[str]], what: str) -> None:
    if not any(set(schema) <= set(present) for schema in schemas):
        wanted = " or ".join(" and ".join(schema) for schema in schemas)
        raise InputError(f"{what} has no column {wanted} (columns present: {', '.join(present)})")


def _drawn(data: Any, limit: int | None, seed: str, name: str) -> Iterator[tuple[int, Row]]:
    """Rows and their places: all in their order, or in a random one where only some are wanted."""
    with tqdm(total=len(data), desc=f"data.{name}", unit="row", mininterval=5) as bar:
        drawn = limit is not None and limit < len(data)
        order = random.Random(seed).sample(range(len(data)), len(data))
        for item in ((index, data[index]) for index in order) if drawn else enumerate(data):
            yield item
            bar.update()


def _usable(
    rows: Iterable[tuple[int, Row]],
    name: str,
    convert: Callable[[Row], conversion.Converted],
    fates: Counter[str | None],
) -> Iterator[Row]:
    """Usable rows in the common schema, with ids that name the row of the source; `fates` counts them, and why not."""
    seen: set[str] = set()
    for index, row in rows:
        try:
            converted = convert(row)
        except InputError as error:
            raise InputError(f"data.{name}: row {index}: {error}") from None
        reason = converted if isinstance(converted, str) else fault(converted)
        if reason is None and name.endswith("_prompts"):
            text = repr(converted)
            reason = "repeated prompt" if text in seen else None
            seen.add(text)
        fates[reason] += 1
        if reason is None and not isinstance(converted, str):
            yield {"id": f"{name.removesuffix('_prompts')}-{index:06d}", **converted}

"""The three tables of a probed checkpoint on disk, with what they are of in the Parquet metadata of each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from po_dynamics.errors import InputError
from po_dynamics.storage.parquet import read_table

_WEIGHED = ("ref_logprob", "advantage", "raw_advantage", "coefficient", "weight")
_AUDITED = ("dot_forward", "rel_diff", "audit_dot", "dot_adamw", "inner")
# Columns by table, as stored; docs/architecture.md says what they hold.
COLUMNS = {
    "samples": ("sample_id", "set", "batch", "role", "prompt_ids", "response_ids"),
    "scores": ("sample_id", "batch", "role", "position", "token_id", "score", "logprob", "argmax_logprob", *_WEIGHED),
    "batches": ("batch", "set", "component", "segment", "n", "dot", "grad_norm", "loss", "outlier", *_AUDITED),
}
OPTIONAL = {"scores": ("reward",)}  # of runs whose objective reads it
NAMES = tuple(COLUMNS)
KEY = b"po_dynamics"


@dataclass
class Tables:
    """`samples`, `scores`, `batches` as in docs/architecture.md; `metadata` says what they are of and is JSON.

    metadata: `id` (of this probe), `family, objective, parameters, step, final_set, precision, temperature, layers`,
    `v_norms` (‖v‖ by segment), `learning_rate` (of the next step; null without optimizer state).
    """

    samples: pd.DataFrame
    scores: pd.DataFrame
    batches: pd.DataFrame
    metadata: dict[str, Any]


def write(tables: Tables, folder: Path) -> None:
    """Writes the three files into an existing folder."""
    for name in NAMES:
        write_parquet(getattr(tables, name), folder / f"{name}.parquet", tables.metadata)


def write_parquet(frame: pd.DataFrame, path: Path, metadata: Mapping[str, Any]) -> None:
    """One table, zstd-compressed."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), KEY: json.dumps(metadata, sort_keys=True)})
    pq.write_table(table, path, compression="zstd")


def read_metadata(path: Path) -> dict[str, Any]:
    """What a table is of; InputError for a file that is missing, broken or not of a probe."""
    try:
        stored = (pq.read_schema(path).metadata or {}).get(KEY)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path} cannot be read ({str(error).splitlines()[0]}); probe this checkpoint again") from None
    if stored is None:
        raise InputError(f"{path} is not a table of a probe: it carries no metadata; probe this checkpoint again")
    return dict(json.loads(stored))


def read(folder: Path, names: tuple[str, ...] = NAMES) -> Tables:
    """Tables of one probed checkpoint.

    Raises:
        InputError: a missing or broken file, a missing column, or tables that come from different probes.
    """
    metadata = {name: read_metadata(folder / f"{name}.parquet") for name in NAMES}
    ids = {name: content["id"] for name, content in metadata.items()}
    if len(set(ids.values())) > 1:
        odd = next(name for name in NAMES if list(ids.values()).count(ids[name]) == 1)
        raise InputError(
            f"{folder}/{odd}.parquet is a table of another run than the files beside it; probe this checkpoint again"
        )
    frames = {
        name: read_table(folder / f"{name}.parquet", COLUMNS[name], OPTIONAL.get(name, ())).to_pandas()
        for name in names
    }
    return Tables(**{name: frames.get(name, pd.DataFrame()) for name in NAMES}, metadata=metadata["scores"])

"""The tables of a probed checkpoint on disk, with what they are of in the Parquet metadata of each file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from po_dynamics.errors import InputError
from po_dynamics.storage.parquet import read_table

_WEIGHED = ("ref_logprob", "advantage", "raw_advantage", "coefficient", "weight")
_AUDITED = ("dot_forward", "rel_diff", "audit_dot", "inner")
_TOKEN = ("sample_id", "batch", "role", "position", "token_id", "logprob", "argmax_logprob", "drift_adamw")
# Columns by table, as stored; docs/architecture.md says what they hold. `scores` and `drifts` share a file: rows of D
# and of D′.
COLUMNS = {
    "samples": ("sample_id", "set", "batch", "role", "prompt_ids", "response_ids"),
    "scores": (*_TOKEN, "score", "score_adamw", *_WEIGHED),
    "drifts": (*_TOKEN, "drift_TOT", "drift_POS"),
    "batches": ("batch", "set", "component", "segment", "n", "dot", "grad_norm", "loss", "outlier", *_AUDITED),
}
OPTIONAL = {"scores": ("reward",), "drifts": ("drift_TOP", "drift_MID")}  # of objectives and probes that have them
DRIFTS = ("drift_TOT", "drift_POS", *OPTIONAL["drifts"])
FINAL = "final"  # the role of rows of D′
FORMAT = 2  # of the files; tables without it hold nothing of D′
FILES = ("samples", "scores", "batches")
KEY = b"po_dynamics"


@dataclass
class Tables:
    """`samples`, `scores` (of D), `drifts` (of D′) and `batches` as in docs/architecture.md, and what they are of.

    metadata: `id` (of this probe), `family, objective, parameters, step, final_set, precision, temperature, top_p,
    layers`, `v_norms` (‖v‖ by segment), `u_norms` (‖u‖ by component and segment).
    """

    samples: pd.DataFrame
    scores: pd.DataFrame
    drifts: pd.DataFrame
    batches: pd.DataFrame
    metadata: dict[str, Any]


def write(tables: Tables, folder: Path) -> None:
    """Writes the three files into an existing folder."""
    both_sides = pd.concat([tables.scores, tables.drifts], ignore_index=True)
    for name, frame in zip(FILES, (tables.samples, both_sides, tables.batches), strict=True):
        write_parquet(frame, folder / f"{name}.parquet", {**tables.metadata, "format": FORMAT})


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


def read(folder: Path, files: Sequence[str] = FILES) -> Tables:
    """Tables of one probed checkpoint; those of other files are empty.

    Raises:
        InputError: a missing or broken file, a missing column, tables of an older format or of different probes.
    """
    metadata = {name: read_metadata(folder / f"{name}.parquet") for name in FILES}
    for name, content in metadata.items():
        if (found := content.pop("format", 1)) != FORMAT:
            raise InputError(
                f"{folder}/{name}.parquet has format {found}, not {FORMAT}: it holds no drifts of D′, without which G "
                "has no interval; probe again (`snakemake --forcerun probe_offline probe_online`)"
            )
    ids = {name: content["id"] for name, content in metadata.items()}
    if len(set(ids.values())) > 1:
        odd = next(name for name in FILES if list(ids.values()).count(ids[name]) == 1)
        raise InputError(
            f"{folder}/{odd}.parquet is a table of another run than the files beside it; probe this checkpoint again"
        )
    frames = {name: _read(folder / f"{name}.parquet", name) for name in files}
    if "scores" in frames:
        frames |= _sides(frames["scores"])
    return Tables(**{name: frames.get(name, pd.DataFrame()) for name in COLUMNS}, metadata=metadata["scores"])


def _read(path: Path, name: str) -> pd.DataFrame:
    tables = ("scores", "drifts") if name == "scores" else (name,)
    needed = dict.fromkeys(column for table in tables for column in COLUMNS[table])
    optional = [column for table in tables for column in OPTIONAL.get(table, ())]
    frame: pd.DataFrame = read_table(path, list(needed), optional).to_pandas()
    return frame


def _sides(both: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Rows of D and rows of D′, each with its own columns."""
    final = both["role"] == FINAL
    sides = {"scores": both[~final], "drifts": both[final].reset_index(drop=True)}
    columns = {name: [*COLUMNS[name], *OPTIONAL[name]] for name in sides}
    return {name: side[[c for c in side.columns if c in columns[name]]] for name, side in sides.items()}

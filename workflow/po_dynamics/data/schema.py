"""The common schema of the four data sets, and what a usable row of it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from po_dynamics.storage.atomic import atomic_file

Row = dict[str, Any]


MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


COLUMNS = {
    "sft": ("prompt", "completion"),
    "preferences": ("prompt", "chosen", "rejected"),
    "final_prompts": ("prompt",),
    "eval_prompts": ("prompt",),
}
SOURCES = "sources.json"  # beside published data sets: where each comes from, its hash, and what became of its rows


def write_rows(rows: Iterable[Row], path: Path, columns: Sequence[str]) -> int:
    """Writes `id` and columns of messages, atomically and in chunks; returns the number of rows."""
    schema = pa.schema([("id", pa.string()), *((column, MESSAGES) for column in columns)])
    iterator, count = iter(rows), 0
    with atomic_file(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        while chunk := list(islice(iterator, 4096)):
            writer.write_table(pa.Table.from_pylist(chunk, schema))
            count += len(chunk)
    return count


def fault(row: Mapping[str, Any]) -> str | None:
    """Why a row cannot be used, in a word or two, whatever the model; None for a good one.

    * `roles`: the prompt is not a user's and an assistant's messages in turn, after at most one of the system, ending
      with the user's; or an answer is not one message of the assistant;
    * `empty text`: a message of white space alone;
    * `identical answers`: the chosen and the rejected one differ in white space at most.
    """
    prompt, answers = row["prompt"], [row[name] for name in ("completion", "chosen", "rejected") if name in row]
    if not _in_turn([message["role"] for message in prompt]):
        return "roles"
    if any([message["role"] for message in answer] != ["assistant"] for answer in answers):
        return "roles"
    if not all(message["content"].strip() for messages in (prompt, *answers) for message in messages):
        return "empty text"
    words = [answer[0]["content"].split() for answer in answers]
    return "identical answers" if len(words) == 2 and words[0] == words[1] else None


def _in_turn(roles: Sequence[str]) -> bool:
    turns = roles[1:] if roles[:1] == ["system"] else roles
    return len(turns) % 2 == 1 and all(role == ("user", "assistant")[i % 2] for i, role in enumerate(turns))

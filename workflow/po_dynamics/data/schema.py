"""The common schema of the four data sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from po_dynamics.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


Row = dict[str, Any]


_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


COLUMNS = {
    "sft": ("prompt", "completion"),
    "preferences": ("prompt", "chosen", "rejected"),
    "final_prompts": ("prompt",),
    "eval_prompts": ("prompt",),
}


def load_table(path: Path | str, columns: Sequence[str]) -> Dataset:
    """The columns of a Parquet file as an in-memory `datasets.Dataset`.

    Raises:
        InputError: no such file, not Parquet, a column is missing, no rows.
    """
    from datasets import Dataset

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; run the stage that writes it")
    try:
        present = pq.read_schema(path).names
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is not a Parquet file ({' '.join(str(error).split())}); write it again") from None
    if missing := [column for column in columns if column not in present]:
        raise InputError(f"{path} has no column {', '.join(missing)} (columns present: {', '.join(present)})")
    table = pq.read_table(path, columns=list(columns))
    if not table.num_rows:
        raise InputError(f"{path} is an empty data set; it needs at least one row")
    return Dataset(table)


def _chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, size)):
        yield chunk


def check_lengths(
    rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, limit: int, key: str, path: Path | str
) -> None:
    """Raises InputError for the first row whose rendered prompt has more than `limit` tokens; `key` sets the limit."""
    for chunk in _chunks(rows, 1024):
        rendered = tokenizer.apply_chat_template(
            [row["prompt"] for row in chunk], add_generation_prompt=True, tokenize=False
        )
        for row, ids in zip(chunk, tokenizer(list(rendered), add_special_tokens=False)["input_ids"], strict=True):
            if len(ids) > limit:
                raise InputError(
                    f"{path}: the prompt of {row['id']} has {len(ids)} tokens, more than the {limit} of {key}; "
                    f"raise {key} or remove the row"
                )


def write_table(rows: Iterable[Row], path: Path, columns: Sequence[str]) -> int:
    """Writes `id` and columns of messages, in chunks; returns the number of rows."""
    schema = pa.schema([("id", pa.string()), *((column, _MESSAGES) for column in columns)])
    count = 0
    with pq.ParquetWriter(path, schema) as writer:
        for chunk in _chunks(rows, 4096):
            writer.write_table(pa.Table.from_pylist(chunk, schema))
            count += len(chunk)
    return count

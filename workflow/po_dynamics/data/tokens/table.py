"""Reading the tokens of a data set, and the rule by which each use takes rows from them.

Nothing is tokenised here, and a row costs nothing until it is read: the table is mapped into memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from po_dynamics.data.schema import COLUMNS, MESSAGES
from po_dynamics.data.tokens.mapped import open_mapped, write_mapped
from po_dynamics.errors import InputError

Array = np.ndarray


def schema_of(data_set: str) -> pa.Schema:
    """`id`, the messages of the `prompt`, whether it is the `first` row with it, and token ids, answers' with EOS."""
    ids = [(f"{name}_ids", pa.list_(pa.int32())) for name in COLUMNS[data_set]]
    return pa.schema([("id", pa.string()), ("prompt", MESSAGES), ("first", pa.bool_()), *ids])


class Use(NamedTuple):
    """The rows that a use takes, by number; how many of the others it leaves out, by reason; how many it cuts."""

    rows: Array
    dropped: Mapping[str, int]
    cut: int = 0

    def __str__(self) -> str:
        counts = {**self.dropped, "cut at the end": self.cut}
        parts = [f"{count} {reason}" for reason, count in counts.items() if count]
        return ", ".join([f"{len(self.rows)} rows used", *parts])


class TokenTable:
    """The rows that `tokenise` wrote; `answers` are the columns of token ids beside `prompt_ids` that are needed."""

    def __init__(self, path: Path | str, *answers: str) -> None:
        self.path, self.answers = Path(path), answers
        self.table, about = open_mapped(path, ["id", "prompt", "first", "prompt_ids", *answers])
        self.context: int | None = about["context"]  # of the model
        self.rows: int = about["rows"]  # before the filter
        self.dropped: dict[str, int] = about["dropped"]

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def ids(self, column: str, row: int) -> list[int]:
        """The token ids of a row."""
        found: list[int] = self.table[column][int(row)].values.to_numpy().tolist()
        return found

    def name(self, row: int) -> str:
        """The id of a row."""
        return str(self.table["id"][int(row)].as_py())

    def names(self, rows: Array) -> list[str]:
        """The ids of rows."""
        found: list[str] = self.table["id"].take(pa.array(rows)).to_pylist()
        return found

    def messages(self, row: int) -> list[dict[str, str]]:
        """The prompt of a row."""
        found: list[dict[str, str]] = self.table["prompt"][int(row)].as_py()
        return found

    def lengths(self, column: str) -> Array:
        """The number of tokens of every row, (N,)."""
        return np.asarray(pc.list_value_length(self.table[column]), dtype=np.int64)

    @cached_property
    def longest(self) -> Array:
        """The number of tokens of every row's longest answer, (N,)."""
        return np.max([self.lengths(column) for column in self.answers], axis=0)

    def cut_to(self, max_length: int) -> Use:
        """Rows whose prompt leaves room for an answer in `max_length` tokens; answers are cut there."""
        prompts = self.lengths("prompt_ids")
        fits = prompts < max_length
        cut = int((fits & (prompts + self.longest > max_length)).sum())
        return Use(np.flatnonzero(fits), {"prompt too long": int((~fits).sum())}, cut)

    def whole(self, max_length: int) -> Use:
        """Rows whose prompt and answers fit whole into `max_length` tokens."""
        fits = self.lengths("prompt_ids") + self.longest <= max_length
        return Use(np.flatnonzero(fits), {"too long": int((~fits).sum())})

    def prompts(self, max_length: int) -> Use:
        """Prompts of at most `max_length` tokens, each once."""
        first, fits = np.asarray(self.table["first"]), self.lengths("prompt_ids") <= max_length
        dropped = {"repeated prompt": int((~first).sum()), "prompt too long": int((first & ~fits).sum())}
        return Use(np.flatnonzero(first & fits), dropped)


def write_part(path: Path, rows: Array, output: Path) -> None:
    """Writes some rows of a table, by number, as a table of its own, in which none was left out."""
    table, about = open_mapped(path, ["prompt", "first"])
    part = table.take(pa.array(rows))
    places: dict[str, int] = {}
    prompts = map(repr, part["prompt"].to_pylist())
    first = [places.setdefault(prompt, place) == place for place, prompt in enumerate(prompts)]
    part = part.set_column(part.schema.get_field_index("first"), "first", pa.array(first))
    write_mapped(part.to_batches(), table.schema, output, {**about, "rows": len(rows), "dropped": {}})


class Prompt(NamedTuple):
    """A prompt as messages and as the token ids that the policy reads."""

    id: str
    messages: list[dict[str, str]]
    ids: list[int]


class Prompts(Sequence[Prompt]):
    """Some prompts of a table, each read when it is asked for."""

    def __init__(self, table: TokenTable, rows: Array) -> None:
        self.table, self.rows = table, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        row = self.rows[index]
        return Prompt(self.table.name(row), self.table.messages(row), self.table.ids("prompt_ids", row))

    @property
    def lengths(self) -> Array:
        """Tokens of each, (N,)."""
        return self.table.lengths("prompt_ids")[self.rows]


def read_prompts(path: Path) -> list[Prompt]:
    """All prompts of a table, in their order."""
    table = TokenTable(path)
    return list(Prompts(table, np.arange(len(table))))


def open_prompts(path: Path, max_length: int, advice: str = "raise max_prompt_length") -> tuple[Prompts, Use]:
    """The prompts of at most `max_length` tokens, each once, and what was left out.

    Raises:
        InputError: none is left; `advice` is the way out.
    """
    table = TokenTable(path)
    use = table.prompts(max_length)
    if not len(use.rows):
        raise InputError(f"{path}: none of {len(table)} prompts has at most {max_length} tokens: {advice}")
    return Prompts(table, use.rows), use

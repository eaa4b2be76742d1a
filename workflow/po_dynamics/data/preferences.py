"""Preference pairs as token ids: what offline training and its reference log-probabilities both see."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from po_dynamics.data.tokens.table import TokenTable
from po_dynamics.errors import InputError
from po_dynamics.storage.parquet import read_rows

REWARDS = ("chosen_rewards", "rejected_rewards")  # columns of the rows of training, where the objective needs them


class EncodedPair(NamedTuple):
    """Token ids of one preference pair; the responses end with EOS unless they were cut."""

    id: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


class Pairs(Sequence[EncodedPair]):
    """The pairs of a token table, as TRL's DPOTrainer makes them, each read when it is asked for.

    Pairs whose prompt leaves no room for a response in `max_length` tokens are left out; what exceeds them is cut off
    at the end of a response. Both are counted on standard error.

    Raises:
        InputError: an unusable table, no pair that leaves room.
    """

    def __init__(self, path: Path, max_length: int) -> None:
        self.table, self.max_length = TokenTable(path, "chosen_ids", "rejected_ids"), max_length
        use = self.table.cut_to(max_length)
        if not len(use.rows):
            raise InputError(f"{path}: no prompt leaves room for a response in {max_length} tokens; raise max_length")
        if use.cut or len(use.rows) < len(self.table):
            print(f"{path}: in max_length = {max_length} tokens: {use}", file=sys.stderr)
        self.rows = use.rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        row = self.rows[index]
        prompt, chosen, rejected = (self.table.ids(f"{name}_ids", row) for name in ("prompt", "chosen", "rejected"))
        room = self.max_length - len(prompt)
        return EncodedPair(self.table.name(row), prompt, chosen[:room], rejected[:room])

    def __iter__(self) -> Iterator[EncodedPair]:
        return (self[index] for index in range(len(self)))

    @property
    def ids(self) -> list[str]:
        """The name of every pair."""
        return self.table.names(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of the prompt with the chosen and with the rejected response, (N, 2)."""
        prompts = self.table.lengths("prompt_ids")[self.rows]
        answers = [self.table.lengths(name)[self.rows] for name in self.table.answers]
        return np.minimum(np.stack([prompts + lengths for lengths in answers], axis=1), self.max_length)


def read_of_pairs(path: Path, ids: Sequence[str], columns: tuple[str, str], what: str) -> list[tuple[float, float]]:
    """Two numbers of every pair, of its chosen and its rejected response, in the order of `ids`.

    Raises:
        InputError: a missing column or pair; `what` is what the message calls the numbers.
    """
    found = {str(row["id"]): (row[columns[0]], row[columns[1]]) for row in read_rows(path, ["id", *columns])}
    if missing := [key for key in ids if key not in found]:
        raise InputError(f"{path} has no {what} of pair {missing[0]} ({len(missing)} missing); compute it again")
    return [found[key] for key in ids]


def read_rewards(path: Path, ids: Sequence[str]) -> list[tuple[float, float]]:
    """Rewards of the chosen and the rejected response in the order of `ids`; InputError when one is missing."""
    return read_of_pairs(path, ids, ("chosen_reward", "rejected_reward"), "rewards")

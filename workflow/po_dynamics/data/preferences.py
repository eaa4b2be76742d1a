"""Preference pairs as token ids: what offline training and its reference log-probabilities both see."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from po_dynamics.errors import InputError
from po_dynamics.models.tokenizers import encode_prompt, encode_response
from po_dynamics.storage.parquet import read_rows

REWARDS = ("chosen_rewards", "rejected_rewards")  # columns of the rows of training, where the objective needs them


@dataclass(frozen=True)
class EncodedPair:
    """Token ids of one preference pair; the responses end with EOS."""

    id: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


def encode_pairs(path: Path, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[EncodedPair]:
    """Token ids of all pairs of `preferences.parquet`, as TRL's DPOTrainer makes them.

    What exceeds `max_length` tokens is cut off at the end of the response, and counted on standard error.

    Raises:
        InputError: a missing column, no rows, an `id` that occurs twice, a prompt that leaves no room for a response
            (TRL would drop the row silently), messages that the chat template refuses.
    """
    rows = read_rows(path, ["id", "prompt", "chosen", "rejected"])
    if len({row["id"] for row in rows}) < len(rows):
        raise InputError(f"{path}: the column id has duplicates; give every pair an id of its own")
    pairs = [_encode(row, tokenizer, path) for row in rows]
    if long := [pair for pair in pairs if len(pair.prompt_ids) >= max_length]:
        raise InputError(
            f"{path}: the prompt of {long[0].id} has {len(long[0].prompt_ids)} tokens, which leaves no room for a "
            f"response in max_length = {max_length} ({len(long)} such rows); shorten them or raise max_length"
        )
    cut = [_truncate(pair, max_length) for pair in pairs]
    count = sum(a != b for a, b in zip(pairs, cut, strict=True))
    if count:
        print(f"{path}: {count} of {len(pairs)} pairs are cut to max_length = {max_length} tokens", file=sys.stderr)
    return cut


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


def _encode(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, path: Path) -> EncodedPair:
    try:
        prompt_ids = encode_prompt(tokenizer, row["prompt"])
        responses = (encode_response(tokenizer, row["prompt"], row[role][0]) for role in ("chosen", "rejected"))
        return EncodedPair(str(row["id"]), prompt_ids, *responses)
    except (InputError, TypeError, IndexError) as error:
        raise InputError(f"{path}: row {row['id']} cannot be encoded: {error}") from error


def _truncate(pair: EncodedPair, max_length: int) -> EncodedPair:
    room = max_length - len(pair.prompt_ids)
    return EncodedPair(pair.id, pair.prompt_ids, pair.chosen_ids[:room], pair.rejected_ids[:room])

"""Preference pairs as token ids: what offline training and its reference log-probabilities both see."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from po_dynamics.errors import InputError

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class EncodedPair:
    """Token ids of one preference pair; the responses end with the tokens that the chat template closes them with."""

    id: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a Parquet file with at least these columns; InputError when one is missing or there is no row."""
    if not Path(path).is_file():
        raise InputError(f"{path} does not exist")
    present = pq.read_schema(path).names
    if missing := [column for column in columns if column not in present]:
        raise InputError(f"{path} has no column {', '.join(missing)} (found: {', '.join(present)})")
    rows = pq.read_table(path, columns=list(columns)).to_pylist()
    if not rows:
        raise InputError(f"{path} is empty")
    return rows


def encode_pairs(path: Path, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[EncodedPair]:
    """Token ids of all pairs of `preferences.parquet`, as TRL's DPOTrainer makes them.

    The response starts where the rendered prompt and the rendered conversation part. What exceeds `max_length` tokens
    is cut off at the end of the response, and counted on standard error.

    Raises:
        InputError: a missing column, no rows, an `id` that occurs twice, a prompt that leaves no room for a response
            (TRL would drop the row silently), an empty response.
    """
    rows = read_table(path, ["id", "prompt", "chosen", "rejected"])
    if len({row["id"] for row in rows}) < len(rows):
        raise InputError(f"{path}: the column id has duplicates; give every pair an id of its own")
    pairs = [_encode(row, tokenizer, path) for row in rows]
    if long := [pair for pair in pairs if len(pair.prompt_ids) >= max_length]:
        raise InputError(
            f"{path}: the prompt of {long[0].id} has {len(long[0].prompt_ids)} tokens, which leaves no room for a "
            f"response in max_length = {max_length} ({len(long)} such rows); shorten them or raise max_length"
        )
    for pair in pairs:
        for role, ids in (("chosen", pair.chosen_ids), ("rejected", pair.rejected_ids)):
            if not ids:
                raise InputError(f"{path}: the {role} response of {pair.id} is empty")
    cut = [_truncate(pair, max_length) for pair in pairs]
    count = sum(a != b for a, b in zip(pairs, cut, strict=True))
    if count:
        print(f"{path}: {count} of {len(pairs)} pairs are cut to max_length = {max_length} tokens", file=sys.stderr)
    return cut


def _encode(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, path: Path) -> EncodedPair:
    def render(messages: Messages, prompt: bool) -> list[int]:
        encoding: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=True)
        return list(encoding["input_ids"])

    try:
        prompt_ids = render(row["prompt"], True)
        chosen_ids = render([*row["prompt"], *row["chosen"]], False)
        rejected_ids = render([*row["prompt"], *row["rejected"]], False)
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(f"{path}: row {row['id']} cannot be rendered by the chat template: {error}") from error
    start = min(_common_prefix(prompt_ids, chosen_ids), _common_prefix(prompt_ids, rejected_ids))
    return EncodedPair(str(row["id"]), prompt_ids[:start], chosen_ids[start:], rejected_ids[start:])


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _truncate(pair: EncodedPair, max_length: int) -> EncodedPair:
    room = max_length - len(pair.prompt_ids)
    return EncodedPair(pair.id, pair.prompt_ids, pair.chosen_ids[:room], pair.rejected_ids[:room])

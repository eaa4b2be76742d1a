"""The one filter of rows for a model, and their tokens, once: what every later stage reads.

A row is left out, and counted, where

* no model could use it: `schema.fault`;
* it would not become the tokens that its text says (`special token`): a special token of this model's vocabulary stands
  in a text, and would end a turn or an answer in its middle;
* the model's chat template refuses it (`template`);
* its prompt leaves no room for an answer in the model's context (`prompt too long`).

What is too long for one use only (`max_length` of a training, say) stays, and `tokens.table` has the rule of that use.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm
from transformers import AutoConfig, PreTrainedTokenizerBase

from po_dynamics.data.schema import COLUMNS, Row, fault
from po_dynamics.data.tokens.mapped import write_mapped
from po_dynamics.data.tokens.table import schema_of
from po_dynamics.errors import InputError
from po_dynamics.models.loading import context_length
from po_dynamics.models.tokenizers import Conversation, encode_conversations, prepared_tokenizer
from po_dynamics.storage.parquet import read_table

ROWS = 512  # of a batch: some megabytes of text and tokens

Fault = Callable[[Row], str | None]


def tokenise(base: Path, rows: Path, data_set: str, output: Path, *, special_tokens: bool, parallel: bool) -> None:
    """Writes the usable rows of a data set with their token ids, in their order, and what became of the others.

    Args:
        base: the base model, whose tokenizer is prepared as SFT does it.
        rows: `id` and the columns of `data_set` in the common schema.
        output: see `table.TokenTable`.
        special_tokens: whether texts may hold special tokens: those that a model of this vocabulary wrote do.
        parallel: whether the tokenizer may use all processors.

    Raises:
        InputError: unusable tables or tokenizers, an `id` that occurs twice, no usable row.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if parallel else "false"
    tokenizer, context = prepared_tokenizer(base), context_length(AutoConfig.from_pretrained(base))
    _require_ids(rows)
    about: dict[str, Any] = {"context": context, "rows": pq.ParquetFile(rows).metadata.num_rows, "dropped": Counter()}
    faults = [fault] if special_tokens else [fault, _holds_special_token(tokenizer)]
    batches = _encoded(_read(rows, data_set), tokenizer, data_set, faults, about)
    write_mapped(batches, schema_of(data_set), output, about)
    _report(rows, about)


def _require_ids(path: Path) -> None:
    ids = read_table(path, ["id"])["id"]
    if len(ids.unique()) < len(ids):
        raise InputError(f"{path}: the column id has duplicates; give every row an id of its own")


def _read(path: Path, data_set: str) -> Iterator[list[Row]]:
    """Batches of rows."""
    columns, file = ["id", *COLUMNS[data_set]], pq.ParquetFile(path)
    if missing := [column for column in columns if column not in file.schema_arrow.names]:
        present = ", ".join(file.schema_arrow.names)
        raise InputError(f"{path} has no column {', '.join(missing)} (columns present: {present})")
    with tqdm(total=file.metadata.num_rows, desc=f"tokens of {data_set}", unit="row", mininterval=5) as bar:
        for batch in file.iter_batches(ROWS, columns=columns):
            yield batch.to_pylist()
            bar.update(batch.num_rows)


def _encoded(
    batches: Iterator[list[Row]],
    tokenizer: PreTrainedTokenizerBase,
    data_set: str,
    faults: Sequence[Fault],
    about: Mapping[str, Any],
) -> Iterator[pa.RecordBatch]:
    """Record batches of the usable rows; the others are counted in `about`."""
    seen: set[bytes] = set()
    answers, context, kept = COLUMNS[data_set][1:], about["context"] or sys.maxsize, 0
    for batch in batches:
        found = _encode(batch, tokenizer, answers, faults, context)
        about["dropped"].update(reason for reason in found if isinstance(reason, str))
        pairs = zip(batch, found, strict=True)
        rows = [_row(row, ids, answers, seen) for row, ids in pairs if isinstance(ids, Conversation)]
        kept += len(rows)
        yield pa.RecordBatch.from_pylist(rows, schema_of(data_set))
    if not kept:
        raise InputError(f"{data_set}: no row is usable{_reasons(about['dropped'])}; docs/data.md has the rules")


def _encode(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    answers: Sequence[str],
    faults: Sequence[Fault],
    context: int,
) -> list[Conversation | str]:
    """Of every row its token ids, or why it is left out."""
    reasons = [next(filter(None, (find(row) for find in faults)), None) for row in rows]
    sound = [row for row, reason in zip(rows, reasons, strict=True) if reason is None]
    conversations = [(row["prompt"], [row[name][0] for name in answers]) for row in sound]
    encoded = iter(encode_conversations(tokenizer, conversations))
    return [reason or _fitting(next(encoded), context) for reason in reasons]


def _fitting(found: Conversation | InputError, context: int) -> Conversation | str:
    if isinstance(found, InputError):
        return "template"
    return "prompt too long" if len(found.prompt_ids) >= context else found


def _row(row: Row, found: Conversation, answers: Sequence[str], seen: set[bytes]) -> Row:
    """A row of the table; `seen` are hashes of the prompts before it."""
    prompt = hashlib.blake2b(repr(row["prompt"]).encode(), digest_size=16).digest()
    first = prompt not in seen
    seen.add(prompt)
    ids = {f"{name}_ids": ids for name, ids in zip(answers, found.answers, strict=True)}
    return {"id": str(row["id"]), "prompt": row["prompt"], "first": first, "prompt_ids": found.prompt_ids, **ids}


def _holds_special_token(tokenizer: PreTrainedTokenizerBase) -> Fault:
    tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    special = re.compile("|".join(map(re.escape, tokens)) or r"(?!)")

    def find(row: Row) -> str | None:
        texts = [message["content"] for messages in row.values() if isinstance(messages, list) for message in messages]
        return "special token" if any(map(special.search, texts)) else None

    return find


def _report(path: Path, about: Mapping[str, Any]) -> None:
    rows, dropped = about["rows"], about["dropped"]
    print(f"{path}: {rows - sum(dropped.values())} of {rows} rows are usable{_reasons(dropped)}", file=sys.stderr)


def _reasons(dropped: Mapping[str, int]) -> str:
    return "".join(f"; {reason}: {count}" for reason, count in sorted(dropped.items()))

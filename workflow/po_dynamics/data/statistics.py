"""What became of every row of every data set, and which prompts the data sets share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from po_dynamics.data.schema import COLUMNS, SOURCES
from po_dynamics.data.tokens.table import TokenTable, Use
from po_dynamics.storage.parquet import read_table

COUNTS = ["data_set", "model", "step", "reason", "rows"]
USED = "used"  # the reason of rows that go on; "cut" counts those of them that lose the end of an answer


# ------------------------------------------------------------------------------------------------------------- counts


def count_rows(
    data: Path, tokens: Mapping[tuple[str, str], Path], lengths: Mapping[str, Mapping[str, Any]]
) -> pd.DataFrame:
    """`data_set, model, step, reason, rows`: how many rows of each step are used, and why the others are not.

    Steps are `read` (the source, of no model), `tokens` (the filter of a model), and the uses: `sft`, `offline`,
    `reward`, `online`, `final responses`.

    Args:
        data: the folder of data sets.
        tokens: by model and data set, what `tokenise` wrote.
        lengths: by model, the limits of its uses: see `uses`.
    """
    rows = [*_read(data)]
    for (model, data_set), path in tokens.items():
        table = TokenTable(path, *(f"{name}_ids" for name in COLUMNS[data_set][1:]))
        rows += [(data_set, model, "tokens", *count) for count in _counts(len(table), table.dropped)]
        for step, use in uses(table, data_set, lengths[model]).items():
            rows += [(data_set, model, step, *count) for count in _counts(len(use.rows), use.dropped, use.cut)]
    return pd.DataFrame(rows, columns=COUNTS)


def uses(table: TokenTable, data_set: str, lengths: Mapping[str, Any]) -> dict[str, Use]:
    """What the stages of a model take from a data set.

    `lengths` has `sft`, `offline` and `reward` (`max_length`; null: the context), `online` (`max_prompt_length`) and
    `new` (tokens of a response); a use that is missing there is none.
    """

    def length(name: str) -> int:
        return int(lengths[name] or table.context or 1024)

    if data_set == "sft":
        return {"sft": table.cut_to(length("sft"))}
    if data_set == "final_prompts":
        return {"final responses": table.prompts((table.context or 10**9) - lengths["new"])}
    if data_set == "preferences":
        found = {"offline": table.cut_to(length("offline")), "online": table.prompts(length("online"))}
        return found | ({"reward": table.whole(length("reward"))} if "reward" in lengths else {})
    return {}


def _read(data: Path) -> Iterator[tuple[str, str, str, str, int]]:
    """The counts of the download; of a world, which drops nothing, the numbers of its rows."""
    known = _sources(data)
    for name in COLUMNS:
        about = known.get(name) or {"used": pq.ParquetFile(data / f"{name}.parquet").metadata.num_rows, "dropped": {}}
        for count in _counts(about["used"], about["dropped"]):
            yield (name, "", "read", *count)


def _counts(used: int, dropped: Mapping[str, int], cut: int = 0) -> list[tuple[str, int]]:
    counts = [(USED, used), *sorted(dropped.items()), ("cut", cut)]
    return [(reason, count) for reason, count in counts if count or reason == USED]


def describe_sources(data: Path) -> pd.DataFrame:
    """`data_set, path, split, revision, rows, used, sha256` of published data sets; no rows for a world."""
    columns = ["path", "split", "revision", "rows", "used", "sha256"]
    known = _sources(data)
    rows = [[name, *(known[name][column] for column in columns)] for name in COLUMNS if name in known]
    return pd.DataFrame(rows, columns=["data_set", *columns])


def _sources(data: Path) -> dict[str, Any]:
    file = data / SOURCES
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found


# ----------------------------------------------------------------------------------------------------------- overlaps


def count_overlaps(data: Path) -> pd.DataFrame:
    """`data_set, other, rows, same_prompt, same_opening`: how many of `rows` share a prompt with the other data set.

    `same_prompt`: the whole prompt is one of the other's; `same_opening`: its first user message is one of the other's
    first user messages. Texts are compared character by character, but for white space at their ends.
    """
    prompts = {name: [*_prompts(data / f"{name}.parquet")] for name in COLUMNS}
    openings = {name: list(map(_opening, found)) for name, found in prompts.items()}
    rows = [
        (name, other, len(prompts[name]), *(_shared(found[name], found[other]) for found in (prompts, openings)))
        for name in COLUMNS
        for other in COLUMNS
        if name != other
    ]
    return pd.DataFrame(rows, columns=["data_set", "other", "rows", "same_prompt", "same_opening"])


def _prompts(path: Path) -> Iterator[tuple[str, ...]]:
    """The texts of every prompt, role by role."""
    for batch in read_table(path, ["prompt"])["prompt"].chunks:
        for messages in batch.to_pylist():
            yield tuple(f"{message['role']}:{message['content'].strip()}" for message in messages)


def _opening(prompt: Sequence[str]) -> str:
    return next((text for text in prompt if text.startswith("user:")), "")


def _shared(some: Iterable[Any], others: Iterable[Any]) -> int:
    known = set(others)
    return sum(item in known for item in some)

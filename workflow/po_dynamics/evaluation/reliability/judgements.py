"""Judged pairs, by a model or by people, in alpaca-eval's file format.

A file is a JSON list of objects with `instruction, output_1, output_2, preference`; `preference` is 1 where `output_1`
is better, 2 where `output_2` is, between them a probability, 1.5 (in old files 0) a tie, and anything else no verdict.
As tables here: the same columns, `preference` in [0, 1] (1: `output_2` is better), NaN where there is no verdict.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from po_dynamics.errors import InputError
from po_dynamics.storage.atomic import atomic_file

PAIR = ["instruction", "output_1", "output_2"]


def read_judgements(paths: Sequence[Path]) -> pd.DataFrame:
    """The judged pairs of one or more files, one after another.

    Raises:
        InputError: a file that cannot be read, is no list of objects, lacks a column, or has a text that is no text.
    """
    return pd.concat([_read(path) for path in paths], ignore_index=True)


def _read(path: Path) -> pd.DataFrame:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}; give a JSON list of judged pairs, as alpaca-eval writes them") from None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path} is not a list of judged pairs, but {type(rows).__name__} of {len(rows or ())}")
    needed = [*PAIR, "preference"]
    if missing := [column for column in needed if any(column not in row for row in rows)]:
        raise InputError(f"{path}: not every pair has {', '.join(missing)}; alpaca-eval's format has {needed}")
    table = pd.DataFrame(rows)[needed]
    if not (texts := table[PAIR].map(lambda value: isinstance(value, str))).all(axis=None):
        place = int(np.flatnonzero(~texts.all(axis=1))[0])
        raise InputError(f"{path}: pair {place} has an instruction or output that is no text: {rows[place]}"[:300])
    table["preference"] = outcomes(pd.to_numeric(table["preference"], errors="coerce").to_numpy(float))
    return table


def write_judgements(table: pd.DataFrame, path: Path) -> None:
    """Writes judged pairs as `read_judgements` reads them; without a verdict: null."""
    rows = table.assign(preference=table["preference"] + 1)
    with atomic_file(path) as temporary:
        rows.to_json(temporary, orient="records", indent=1, force_ascii=False, double_precision=15)


def outcomes(preferences_N: np.ndarray) -> np.ndarray:
    """alpaca-eval's preferences as outcomes in [0, 1]; NaN where they are none."""
    preferences_N = np.where(preferences_N == 0, 1.5, preferences_N)
    return np.where((preferences_N >= 1) & (preferences_N <= 2), preferences_N - 1, np.nan)


def turned(table: pd.DataFrame) -> pd.DataFrame:
    """The pairs the other way round, with the preferences to match."""
    names = {"output_1": "output_2", "output_2": "output_1"}
    return table.rename(columns=names).assign(preference=1 - table["preference"])[[*PAIR, "preference"]]


def labels_of(pairs: pd.DataFrame, labels: pd.DataFrame) -> np.ndarray:
    """The label of each pair as it is shown, (N,): the mean over all who labelled it, in any order; NaN: nobody did."""
    known = pd.concat([labels, turned(labels)]).dropna(subset="preference")
    means = known.groupby(PAIR, sort=False)["preference"].mean()
    return means.reindex(pd.MultiIndex.from_frame(pairs[PAIR])).to_numpy(float)

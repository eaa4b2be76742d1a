"""Examines a judge on answers of the experiment: three to a prompt, each against each, in both orders, twice."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from po_dynamics.errors import InputError
from po_dynamics.evaluation.judge import judge_responses
from po_dynamics.evaluation.reliability.judgements import PAIR, turned
from po_dynamics.settings.judging.calls import Calls
from po_dynamics.storage.parquet import read_table, write_frame

_COLUMNS = ["instruction", "response", "ended"]


def examine(
    responses: Sequence[Path],
    folder: Path,
    judge: str,
    truth: str | None,
    prompts: int,
    seed: int = 0,
    calls: Calls | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Asks the judge, and the one whose verdicts count as true, about the same pairs.

    Args:
        responses: `responses.parquet` of several models, of which the last step counts.
        folder: for the pairs and the answers, which stay there: what is interrupted is not asked again.
        judge: see `judge_responses`.
        truth: another judge; None: there is no truth.
        prompts: how many to draw, at most; each gives three pairs, twelve questions.
        seed: of the draw of prompts and answers.
        calls: how a judge that is a model is asked; every sitting keeps answers of its own, or it would ask only once.

    Returns:
        The judge's judgements in two sittings, and the true ones (see `judgements`), without rows if there is no truth.

    Raises:
        InputError: when no prompt has three different answers.
    """
    pairs = draw_pairs(responses, prompts, seed)
    for name in ("candidate", "baseline"):
        columns = {"response": pairs[name], "ended": pairs[f"{name}_ended"]}
        table = pd.DataFrame({"step": 0, "id": pairs["id"], "instruction": pairs["instruction"], **columns})
        write_frame(table, folder / f"{name}.parquet")
    judged = pd.concat([_sitting(folder, pairs, judge, f"sitting_{i}", calls) for i in (1, 2)], ignore_index=True)
    labels = _sitting(folder, pairs, truth, "truth", calls) if truth else judged[:0]
    return judged, labels


def draw_pairs(responses: Sequence[Path], prompts: int, seed: int) -> pd.DataFrame:
    """`id, instruction, candidate, candidate_ended, baseline, baseline_ended`: three pairs of each drawn prompt."""
    answers = pd.concat([_last_step(path) for path in responses], ignore_index=True)
    answers = answers.drop_duplicates(["instruction", "response"])
    groups = [(instruction, group) for instruction, group in answers.groupby("instruction") if len(group) > 2]
    if not groups:
        raise InputError(f"none of {answers['instruction'].nunique()} prompts has three different answers to compare")
    random, rows = np.random.default_rng(seed), []
    for place in random.permutation(len(groups))[:prompts]:
        instruction, group = groups[place]
        drawn = group.iloc[random.choice(len(group), 3, replace=False)]
        texts = list(zip(drawn["response"], drawn["ended"], strict=True))
        for number, (ours, theirs) in enumerate(itertools.combinations(texts, 2)):
            rows.append((f"{place}-{number}", instruction, *ours, *theirs))
    names = ["id", "instruction", "candidate", "candidate_ended", "baseline", "baseline_ended"]
    return pd.DataFrame(rows, columns=names)


def _last_step(path: Path) -> pd.DataFrame:
    table = read_table(path, ["step", *_COLUMNS]).to_pandas()
    return table.loc[table["step"] == table["step"].max(), _COLUMNS]


def _sitting(folder: Path, pairs: pd.DataFrame, judge: str, name: str, calls: Calls | None) -> pd.DataFrame:
    """The judge's judgements of the pairs, in both orders."""
    output = folder / f"{name}.parquet"
    found = judge_responses(folder / "candidate.parquet", folder / "baseline.parquet", output, judge, calls=calls)
    shown = pairs[["instruction", "baseline", "candidate"]].set_axis(PAIR, axis=1)
    forward, back = (found[column].to_numpy() for column in ("preference", "preference_swapped"))
    return pd.concat([shown.assign(preference=forward), turned(shown.assign(preference=back))], ignore_index=True)

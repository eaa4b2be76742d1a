"""Judging through alpaca-eval: one thin adapter for every judge.

What a judge is, `settings.judging.directory` says. Every pair is judged in both orders unless one is asked for.
alpaca-eval draws one order per prompt, which spreads a position bias over the prompts without showing it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from po_dynamics.errors import InputError
from po_dynamics.evaluation import alpaca
from po_dynamics.judging.answers import Answers, in_chunks
from po_dynamics.judging.ledger import Ledger
from po_dynamics.settings.judging.calls import Calls
from po_dynamics.settings.judging.directory import Judge, find_judge
from po_dynamics.storage.parquet import read_table, write_frame

_COLUMNS = ("step", "id", "instruction", "response", "ended")
Completions = Callable[..., dict[str, list[Any]]]


def judge_responses(
    responses: Path,
    baseline: Path,
    output: Path,
    judge: str | Path,
    calls: Calls | None = None,
    order: str = "both",
    ledger: Path | None = None,
    shared: Path | None = None,
) -> pd.DataFrame:
    """Compares every response with the baseline's response to the same prompt.

    Args:
        responses: `responses.parquet` of one run, all its steps.
        baseline: `responses.parquet` of the SFT model, one step, at least the same prompts.
        output: the annotations to write, atomically: `step, id, preference, preference_swapped`, in the order of
            `responses`: the probability in [0, 1] that the candidate is preferred, shown second and shown first, null
            where the judge gave no verdict. Identical outputs are a tie, 0.5, without asking the judge.
        judge: a directory with `configs.yaml`, the name of one in `workflow/judges/`, or one that alpaca-eval ships.
        calls: how a judge that is a model is asked, and what that may cost.
        order: "both", or "random" for the one that alpaca-eval draws; the other is null then.
        ledger: where its answers are kept as they come (default: beside `output`). Those of a remote judge stay, for
            they were paid for; those of others are deleted when all are there.
        shared: folder of the ledgers of all jobs, which are read too.

    Returns:
        The table that was written.

    Raises:
        InputError: for unusable tables or judges, and when more than `max_missing` of the judgements are missing; the
            answers that came stay in the ledger, so that the next attempt asks for the missing ones only.
    """
    calls = calls or Calls()
    chosen = find_judge(judge, calls)
    pairs = _pairs(_read(responses), _read(baseline), responses, baseline)
    ledger = ledger or output.with_name(f"{output.stem}.ledger.jsonl")
    table = pairs[["step", "id"]].copy()
    asked_2N = alpaca.asked_in(order, pairs["instruction"].tolist())
    with _completions(chosen, calls, ledger, shared) as completions:

        def ask(*outputs: str) -> Callable[[pd.DataFrame], np.ndarray]:
            return lambda of: _ask(chosen, completions, of, *outputs)

        table["preference"] = alpaca.where(asked_2N[0], pairs, ask("baseline", "candidate")) - 1
        table["preference_swapped"] = 2 - alpaca.where(asked_2N[1], pairs, ask("candidate", "baseline"))
    _require_most(table, asked_2N, chosen, calls.max_missing, ledger)
    write_frame(table, output)
    if not chosen.remote:
        ledger.unlink(missing_ok=True)
    return table


@contextmanager
def _completions(judge: Judge, calls: Calls, path: Path, shared: Path | None) -> Iterator[Completions]:
    """alpaca-eval's completion function of a judge, with an open ledger behind it unless its answers cost nothing."""
    function = alpaca.function(judge.function)
    if not judge.cache and not judge.remote:
        yield functools.partial(function, **judge.parameters)
        return
    with Ledger(path, shared) as ledger:
        if judge.remote:
            yield function(judge, calls, ledger)
        else:
            asked = functools.partial(function, **judge.parameters)
            identity = (judge.function, dict(judge.parameters))
            yield Answers(lambda prompts, _: in_chunks(asked, prompts), ledger, identity, dict, calls.max_missing)


def _read(path: Path) -> pd.DataFrame:
    table = read_table(path, _COLUMNS).to_pandas()
    if (bad := table["response"].isna() | table["instruction"].isna()).any():
        raise InputError(f"{path}: {bad.sum()} of {len(table)} rows have no instruction or response (null)")
    if (repeated := table.duplicated(["step", "id"])).any():
        raise InputError(f"{path}: {repeated.sum()} rows repeat a step and id, such as {table['id'][repeated].iloc[0]}")
    return table


def _pairs(candidate: pd.DataFrame, reference: pd.DataFrame, path: Path, reference_path: Path) -> pd.DataFrame:
    """Candidates beside the baseline's outputs: `step, id, instruction`, and (response, ended) of either."""
    if (steps := reference["step"].nunique()) != 1:
        raise InputError(f"{reference_path}: the baseline must be one model, but there are {steps} steps")
    pairs = candidate.merge(reference, on="id", how="left", suffixes=("", "_reference"), validate="many_to_one")
    if (absent := pairs["response_reference"].isna()).any():
        raise InputError(
            f"{reference_path}: no response to {pairs['id'][absent].nunique()} of {candidate['id'].nunique()} prompts "
            f"of {path}, such as {pairs['id'][absent].iloc[0]}; generate both from the same prompts"
        )
    if (other := pairs["instruction"] != pairs["instruction_reference"]).any():
        raise InputError(f"{reference_path}: prompt {pairs['id'][other].iloc[0]} is not the one in {path}")
    result = pairs[["step", "id", "instruction"]].copy()
    for name, suffix in (("candidate", ""), ("baseline", "_reference")):
        texts, ended = pairs["response" + suffix], pairs["ended" + suffix]
        result[name] = [(str(text), bool(end)) for text, end in zip(texts, ended, strict=True)]
    return result


def _ask(judge: Judge, completions: Completions, pairs: pd.DataFrame, first: str, second: str) -> np.ndarray:
    """alpaca-eval's preferences in [1, 2] (2: `second` is better), NaN where the judge gave no verdict."""
    from_json = judge.encoding == "json"
    instructions = [json.dumps(text) if from_json else text for text in pairs["instruction"]]
    outputs = {
        name: [
            {"instruction": instruction, "output": json.dumps(output) if from_json else output[0], "generator": name}
            for instruction, output in zip(instructions, pairs[name], strict=True)
        ]
        for name in (first, second)
    }
    with alpaca.alpaca_eval() as package:
        _, annotations = package.evaluate(
            model_outputs=outputs[second],
            reference_outputs=outputs[first],
            annotators_config=str(judge.directory),
            Annotator=alpaca.annotator_class(completions),
            caching_path=None,  # answers are kept by the ledger
            is_avoid_reannotations=False,
            is_store_missing_annotations=False,
            annotation_kwargs={"is_ordered": True, "chunksize": None},
            fn_metric=_metric,
            sort_by="win_rate",
            precomputed_leaderboard=None,
            is_cache_leaderboard=False,
            output_path=None,
            is_return_instead_of_print=True,
        )
    asked = [(a["output"], b["output"]) for a, b in zip(outputs[first], outputs[second], strict=True)]
    if [(row["output_1"], row["output_2"]) for row in annotations] != asked:
        raise RuntimeError("alpaca-eval returned other pairs than it was given")
    return np.array([row["preference"] for row in annotations], dtype=float)


def _metric(annotations: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The least that `evaluate` needs; its own metric fails without a clear reason when no verdict could be read."""
    preference = np.array([row["preference"] for row in annotations], dtype=float)
    given = preference[~np.isnan(preference)]
    rate = float(np.mean(given)) if len(given) else float("nan")
    return {"win_rate": 100 * (rate - 1), "standard_error": float("nan")}  # intervals are ours: see `stats`


def _require_most(table: pd.DataFrame, asked_2N: np.ndarray, judge: Judge, max_missing: float, ledger: Path) -> None:
    absent = table[["preference", "preference_swapped"]].isna() & asked_2N.T
    count, asked = int(absent.to_numpy().sum()), int(asked_2N.sum())
    if count <= max_missing * asked:
        return
    steps = table["step"][absent.any(axis=1)].unique().tolist()
    raise InputError(
        f"judge '{judge.name}': {count} of {asked} judgements are missing "
        f"({int(absent.any(axis=1).sum())} responses, steps {', '.join(map(str, steps))}) and "
        f"evaluation.judging.max_missing is {max_missing:g}. Running again asks for those without an answer; a reply "
        f"that cannot be read is kept as the others are, in {ledger}"
    )

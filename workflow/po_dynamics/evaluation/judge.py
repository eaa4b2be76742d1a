"""Judging through alpaca-eval: one thin adapter for every judge.

A judge is an alpaca-eval annotator directory (`configs.yaml` and a template). Beyond what alpaca-eval reads there,
`fn_completions` may name a function of ours as "module:function", and an optional mapping `po_dynamics` may set

* `encoding: json`: instruction and outputs reach the template as JSON, an output as `[response, ended]`; otherwise as
  plain text (default);
* `cache: false`: do not keep the verdicts on disk while judging (for judges that cost nothing).

Every pair is judged in both orders unless one is asked for. alpaca-eval draws one order per prompt, which spreads a
position bias over the prompts without showing it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from po_dynamics.errors import InputError
from po_dynamics.evaluation import alpaca
from po_dynamics.storage.parquet import read_table, write_frame

JUDGES = Path(__file__).parents[2] / "judges"
CHUNK = 64  # judgements between two writes of a cache: what a killed job has to ask for again
_COLUMNS = ("step", "id", "instruction", "response", "ended")


@dataclass(frozen=True)
class Judge:
    """An annotator directory, checked: its configuration and the adapter's own settings."""

    directory: Path
    name: str
    encoding: str
    cache: bool
    digest: str  # of the configuration and the template: a cache of another judge is never read


def judge_responses(
    responses: Path, baseline: Path, output: Path, judge: str | Path, order: str = "both"
) -> pd.DataFrame:
    """Compares every response with the baseline's response to the same prompt.

    Args:
        responses: `responses.parquet` of one run, all its steps.
        baseline: `responses.parquet` of the SFT model, one step, at least the same prompts.
        output: the annotations to write, atomically: `step, id, preference, preference_swapped`, in the order of
            `responses`: the probability in [0, 1] that the candidate is preferred, shown second and shown first.
            Identical outputs are a tie, 0.5, without asking the judge.
        judge: a directory with `configs.yaml`, the name of one in `workflow/judges/`, or one that alpaca-eval ships.
        order: "both", or "random" for the one that alpaca-eval draws; the other is null then.

    Returns:
        The table that was written.

    Raises:
        InputError: for unusable tables or judges, and when a judgement is missing; the verdicts that a caching judge
            did give stay beside `output`, so that the next attempt asks for the missing ones only.
    """
    chosen = find_judge(judge)
    pairs = _pairs(_read(responses), _read(baseline), responses, baseline)
    cache = output.with_name(f"{output.stem}.cache-{chosen.digest}.json") if chosen.cache else None
    table = pairs[["step", "id"]].copy()
    asked_2N = alpaca.asked_in(order, pairs["instruction"].tolist())
    table["preference"] = alpaca.where(
        asked_2N[0], pairs, lambda p: _ask(chosen, p, "baseline", "candidate", cache) - 1
    )
    table["preference_swapped"] = alpaca.where(
        asked_2N[1], pairs, lambda p: 2 - _ask(chosen, p, "candidate", "baseline", cache)
    )
    _require_all(table, asked_2N, chosen, cache)
    write_frame(table, output)
    return table


def find_judge(judge: str | Path) -> Judge:
    """Finds a judge: a directory, a name in `workflow/judges/`, or one of those that alpaca-eval ships."""
    directory = _directory(judge)
    path = directory / "configs.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict) or len(config) != 1 or not all(isinstance(c, dict) for c in config.values()):
        raise InputError(f"judge {path}: it must hold exactly one annotator, a mapping under its name")
    ((name, entry),) = config.items()
    own = {"encoding": "text", "cache": True, **(entry.get("po_dynamics") or {})}
    if (
        set(own) != {"encoding", "cache"}
        or own["encoding"] not in ("text", "json")
        or own["cache"] not in (True, False)
    ):
        raise InputError(
            f"judge {path}: po_dynamics is {own}; it takes encoding (text or json) and cache (true or false)"
        )
    template = str(entry.get("prompt_template", ""))
    if len(template) < 200 and (directory.parent / template).is_file():
        template = (directory.parent / template).read_text(encoding="utf-8")
    digest = hashlib.sha256(json.dumps([config, template], sort_keys=True).encode()).hexdigest()[:12]
    return Judge(directory, name, own["encoding"], own["cache"], digest)


def _directory(judge: str | Path) -> Path:
    spec = importlib.util.find_spec("alpaca_eval")
    shipped = Path(spec.origin).parent / "evaluators_configs" if spec and spec.origin else None
    for candidate in (Path(judge), JUDGES / judge, *([shipped / judge] if shipped else [])):
        if (candidate / "configs.yaml").is_file():
            return candidate.resolve()
    ours = ", ".join(sorted(path.parent.name for path in JUDGES.glob("*/configs.yaml")))
    raise InputError(
        f"judge '{judge}': no such directory with a configs.yaml; give a path, one of workflow/judges/ ({ours}) "
        "or a name that alpaca-eval ships"
    )


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


def _ask(judge: Judge, pairs: pd.DataFrame, first: str, second: str, cache: Path | None) -> np.ndarray:
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
            Annotator=alpaca.annotator_class(),
            caching_path=cache,
            is_store_missing_annotations=False,  # a missing verdict is asked for again, not kept for ever
            annotation_kwargs={"is_ordered": True, "chunksize": CHUNK if cache else None},
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


def _require_all(table: pd.DataFrame, asked_2N: np.ndarray, judge: Judge, cache: Path | None) -> None:
    absent = table[["preference", "preference_swapped"]].isna() & asked_2N.T
    if not absent.any(axis=None):
        return
    steps = table["step"][absent.any(axis=1)].unique().tolist()
    kept = f"; the others are kept in {cache}, so that running again asks for the missing ones only" if cache else ""
    raise InputError(
        f"judge '{judge.name}': {int(absent.to_numpy().sum())} of {int(asked_2N.sum())} judgements are missing "
        f"({int(absent.any(axis=1).sum())} responses, steps {', '.join(map(str, steps))}): no readable reply{kept}"
    )

"""Win rates with intervals, and the results table. Everything is seeded.

The interval of a checkpoint is over prompts (Miller, "Adding Error Bars to Evals", arXiv 2411.00640); what is said of
runs is over trainings and prompts (`comparisons`). Rates and their differences are in per cent.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from po_dynamics.errors import InputError
from po_dynamics.evaluation import comparisons
from po_dynamics.evaluation.reliability.length_control import length_controlled
from po_dynamics.objectives.families import Runs, parent_of
from po_dynamics.storage.atomic import atomic_file
from po_dynamics.storage.parquet import read_table

DRAWS = 4000  # bootstrap resamples
LEVEL = 0.95
RUN = ["model", "run", "seed"]
Cube = Mapping[int, pd.DataFrame]  # outcomes of a run by seed, prompts × steps
_PREFERENCES = ["preference", "preference_swapped"]
_MEASURES = {"n_tokens": "mean_length", "kl": "kl_to_sft", "reward": "mean_reward", "degenerate": "degenerate"}
_OF_THE_JUDGE = ("first_slot", "length_difference", "length_controlled", "length_extrapolates")


def load_outcomes(evaluations: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per judged response of all runs.

    Args:
        evaluations: mappings with `model, run, seed` and the paths `responses` and `annotations` of one folder, and
            `baseline`, the responses that these were judged against.

    Returns:
        `model, run, seed, step, id, preference, preference_swapped, outcome, length_difference`, and of the response
        `n_tokens, kl, reward, degenerate`. `outcome` is the mean of the two orders: 1 a win over the SFT model, 0.5 a
        tie, 0 a loss; where a folder was judged in a single order it is that one's. `length_difference`: characters
        beyond the baseline's response.

    Raises:
        InputError: when the two tables of a folder are not of the same responses, or preferences leave [0, 1].
    """
    tables = [_judged(entry).assign(**{key: entry[key] for key in RUN}) for entry in evaluations]
    if not tables:
        raise InputError("no evaluations given: nothing was judged")
    outcomes = pd.concat(tables, ignore_index=True)
    if (twice := outcomes.duplicated([*RUN, "step", "id"])).any():
        raise InputError(
            f"{twice.sum()} responses are given twice, such as of {outcomes.loc[twice, RUN].iloc[0].to_dict()}"
        )
    return outcomes[[*RUN, "step", "id", *_PREFERENCES, "outcome", "length_difference", *_MEASURES]]


def _judged(entry: Mapping[str, Any]) -> pd.DataFrame:
    """Annotations and responses of one folder, joined."""
    keys = ["step", "id"]
    responses = read_table(entry["responses"], [*keys, "response", *_MEASURES]).to_pandas()
    annotations = read_table(entry["annotations"], [*keys, *_PREFERENCES]).to_pandas()
    table = annotations.merge(responses, on=keys, how="outer", indicator=True, validate="1:1")
    if (alone := table["_merge"] != "both").any():
        raise InputError(
            f"{entry['annotations']}: {alone.sum()} responses are not in both this and {entry['responses']}; "
            "judge them again"
        )
    preferences = table[_PREFERENCES].to_numpy(dtype=float)
    if (outside := (preferences < 0) | (preferences > 1)).any():
        raise InputError(f"{entry['annotations']}: {outside.sum()} preferences are not in [0, 1]")
    single_order = not (~np.isnan(preferences)).all(1).any()
    baseline = read_table(entry["baseline"], ["id", "response"]).to_pandas().set_index("id")["response"]
    return table.assign(
        outcome=table[_PREFERENCES].mean(axis=1, skipna=single_order),
        length_difference=table["response"].str.len() - table["id"].map(baseline).str.len(),
    )


def win_rates(outcomes: pd.DataFrame, judge: str) -> pd.DataFrame:
    """Win rate over the SFT model per `model, run, seed, step`, with a 95 % bootstrap interval over prompts.

    Returns:
        `model, run, seed, step, judge, win_rate, low, high, n, n_missing, order_consistency, mean_length, kl_to_sft,
        mean_reward, degenerate, first_slot, length_difference, length_controlled, length_controlled_low,
        length_controlled_high, length_extrapolates`: rates in per cent, length in tokens, its difference to the SFT
        model's in characters, KL in nats per response. `order_consistency` is the share of prompts with the same
        verdict in both orders (NaN where only one was asked), `first_slot` the mean preference for the answer that is
        shown first (50: none); `n_missing` prompts have no outcome and do not count; of the last four see
        `reliability.length_control`.
    """
    rows = []
    for (model, run, seed), table in outcomes.groupby(RUN, sort=True):
        rates = table.pivot(index="id", columns="step", values="outcome").sort_index()
        low, high = interval(rates.to_numpy())
        for column, (step, group) in enumerate(table.groupby("step", sort=True)):
            judged = group.dropna(subset="outcome")
            rows.append(
                {"model": model, "run": run, "seed": seed, "step": step, "judge": judge}
                | {"win_rate": 100 * judged["outcome"].mean(), "low": 100 * low[column], "high": 100 * high[column]}
                | {"n": len(judged), "n_missing": len(group) - len(judged)}
                | {"order_consistency": 100 * _order_consistency(judged)}
                | {name: group[column_].astype(float).mean() for column_, name in _MEASURES.items()}
                | {"first_slot": 100 * _first_slot(judged), "length_difference": group["length_difference"].mean()}
                | _without_length(judged)
            )
    table = pd.DataFrame(rows)
    table["degenerate"] *= 100
    return table


def _order_consistency(judged: pd.DataFrame) -> float:
    both = judged[_PREFERENCES].dropna().to_numpy(dtype=float)
    ours, theirs = np.sign(both - 0.5).T
    return float(np.mean(ours == theirs)) if len(both) else np.nan


def _first_slot(judged: pd.DataFrame) -> float:
    """The candidate's mean when it is shown first, and the baseline's when that is; each order weighs a half."""
    second, first = judged[_PREFERENCES].astype(float).mean()
    return float(first + 1 - second) / 2


def _without_length(judged: pd.DataFrame) -> dict[str, Any]:
    found = length_controlled(
        judged["outcome"].to_numpy(dtype=float), judged["length_difference"].to_numpy(dtype=float)
    )
    names = ("length_controlled", "length_controlled_low", "length_controlled_high")
    rates = {name: 100 * value for name, value in zip(names, found[:3], strict=True)}
    return rates | {"length_extrapolates": found.extrapolates}


def interval(values_NK: np.ndarray, *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Percentile bootstrap interval of the mean over N prompts of each of K columns: (2, K).

    NaN is missing. The columns share their resamples. A column that is all 0 or all 1 shows the bootstrap no
    variation; it gets the exact binomial interval (Clopper–Pearson) instead of one of width 0.
    """
    values = np.asarray(values_NK, dtype=float)
    present = ~np.isnan(values)
    weights_DN = _resamples(len(values), draws, seed)
    with np.errstate(invalid="ignore"):
        means_DK = (weights_DN @ np.where(present, values, 0)) / (weights_DN @ present)
    bounds = np.nanquantile(means_DK, [(1 - level) / 2, (1 + level) / 2], axis=0)
    for column in range(values.shape[1]):
        given = values[present[:, column], column]
        if len(given) and given.min() == given.max() and given[0] in (0, 1):
            exact = scipy_stats.binomtest(int(given.sum()), len(given)).proportion_ci(level, "exact")
            bounds[:, column] = exact.low, exact.high
    return bounds


@functools.lru_cache(maxsize=2)
def _resamples(n: int, draws: int, seed: int) -> np.ndarray:
    """How often each of n prompts is in each resample: (draws, n)."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws).astype(float)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's step-down adjustment of p values; NaN stays NaN and does not count."""
    adjusted = np.full(len(p_values), np.nan)
    order = [i for i in np.argsort(p_values) if not np.isnan(p_values[i])]
    worst = 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted


def results_table(outcomes: pd.DataFrame, runs: Runs) -> pd.DataFrame:
    """The paper's Table 1 with intervals: a row per model and run, at the final and at the best checkpoint.

    The best checkpoint is never the model that a run starts from.

    Args:
        outcomes: of `load_outcomes`.
        runs: `objective`, `family` and, where a run continues another, `init_step` by run name; a run without an
            entry (the base model) has no parent.

    Returns:
        * `model, run, objective, n_seeds, n`;
        * `final_step, final, final_std, final_low, final_high` and the same for `peak` (best mean over seeds): mean and
          sample standard deviation over seeds (NaN for one), interval over prompts, from three seeds on over trainings
          and prompts. The peak is chosen on the prompts that it is reported on, so it is optimistic;
        * `parent` (dpo or ppo) and `unit`: "training" with three seeds or more of both, else "prompt";
        * `difference, difference_low, difference_high`: to the parent at the final checkpoint, with the interval over
          the unit (and prompts); `parent_std`: deviation between the parent's seeds there; `p, p_holm, detectable`:
          exchange of trainings, Holm-corrected over the runs of the model, NaN where the unit is the prompt;
        * `peak_steps` checkpoints that both have trained to, and `peak_difference…`: the same at the best of these,
          chosen on one half of the prompts and scored on the other (cross-fitted), so free of that optimism;
        * at the final checkpoint: `order_consistency, mean_length, kl_to_sft, mean_reward, degenerate, first_slot,
          length_difference, length_controlled, length_extrapolates` (the last as a share of the seeds).
    """
    rows: list[dict[str, Any]] = []
    for model, of_model in outcomes.groupby("model", sort=True):
        cubes = {str(run): _cube(table) for run, table in of_model.groupby("run", sort=True)}
        first = len(rows)
        for run in _ordered(cubes, runs):
            parent = parent_of(run, runs) if run in runs else None
            row = {"model": model, "run": run, "objective": runs.get(run, {}).get("objective", run)}
            rows.append(row | _levels(cubes[run], _start(run, runs)) | _against(run, parent, cubes, runs))
        for name in ("p", "peak_p"):
            for row, p in zip(rows[first:], holm(np.array([row[name] for row in rows[first:]])), strict=True):
                row[f"{name}_holm"] = p
    return _with_measures(pd.DataFrame(rows), outcomes)


def _ordered(cubes: Iterable[str], runs: Mapping[str, Any]) -> list[str]:
    """Runs without an entry (base) first, then in the order of the configuration."""
    position = {name: i for i, name in enumerate(runs)}
    return sorted(cubes, key=lambda run: (position.get(run, -1), run))


def _start(run: str, runs: Runs) -> int:
    """The step of the model that a run starts from; the base model is no run and has none."""
    return int(runs[run].get("init_step", 0)) if run in runs else -1


def _cube(table: pd.DataFrame) -> Cube:
    """Outcomes by seed: prompts (rows) × steps (columns), the steps that every seed has."""
    seeds = table["seed"].unique().tolist()
    cube = {seed: table[table["seed"] == seed].pivot(index="id", columns="step", values="outcome") for seed in seeds}
    steps = sorted(set.intersection(*(set(t.columns) for t in cube.values())))
    return {seed: t[steps].sort_index() for seed, t in cube.items()}


def _steps(cube: Cube) -> list[int]:
    return [int(step) for step in next(iter(cube.values())).columns.to_numpy()]


def _levels(cube: Cube, start: int) -> dict[str, Any]:
    """Win rates at the final and at the best checkpoint after `start`: mean and deviation over seeds, interval."""
    mean = pd.concat(cube.values()).groupby(level=0).mean()  # all seeds of a prompt are one observation
    row: dict[str, Any] = {"n_seeds": len(cube), "n": len(mean)}
    rates: dict[Any, float] = mean.mean().to_dict()
    best = max((step for step in _steps(cube) if step > start), key=rates.__getitem__, default=None)
    for name, step in (("final", _steps(cube)[-1]), ("peak", best)):
        names = [f"{name}_step", name, f"{name}_std", f"{name}_low", f"{name}_high"]
        row |= dict(zip(names, [np.nan] * 5 if step is None else [step, *_level(cube, mean, step)], strict=True))
    return row


def _level(cube: Cube, mean: pd.DataFrame, step: int) -> list[float]:
    """Mean, deviation over seeds and interval at a checkpoint, in per cent."""
    of_seeds = [table[step].mean() for table in cube.values()]
    low, high = interval(mean[[step]].to_numpy())[:, 0]
    if len(cube) >= comparisons.MIN_TRAININGS:
        wide = comparisons.interval(_stacked([cube], [[step]])[0])
        low, high = min(low, wide[0]), max(high, wide[1])
    std = np.std(of_seeds, ddof=1) if len(of_seeds) > 1 else np.nan
    return [100 * float(value) for value in (np.mean(of_seeds), std, low, high)]


def _against(run: str, parent: str | None, cubes: Mapping[str, Cube], runs: Runs) -> dict[str, Any]:
    """Differences to the parent at the final checkpoint and at the best of those that both trained to."""
    row: dict[str, Any] = {"parent": None, "unit": None, "peak_steps": np.nan}
    steps: dict[str, list[list[int]]] = {"": [], "peak_": []}
    pair = [cubes[name] for name in (run, parent or "") if name in cubes]
    if parent is not None and parent in cubes:
        start = max(_start(name, runs) for name in (run, parent))
        shared = [step for step in _steps(pair[0]) if step > start and step in _steps(pair[1])]
        unit = "training" if min(map(len, pair)) >= comparisons.MIN_TRAININGS else "prompt"
        row = {"parent": parent, "unit": unit, "peak_steps": len(shared)}
        steps = {"": [_steps(cube)[-1:] for cube in pair], "peak_": [shared, shared] if shared else []}
    for prefix, compared in steps.items():
        row |= {prefix + name: value for name, value in _compare(pair, compared).items()}
    return row


def _compare(pair: Sequence[Cube], steps: Sequence[Sequence[int]]) -> dict[str, float]:
    """The comparison of two runs at these checkpoints of each, in per cent but p; NaN where none is asked for."""
    names = ("difference", "difference_low", "difference_high", "p", "detectable", "parent_std")
    found = comparisons.compare(*_stacked(pair, steps)) if steps else [np.nan] * len(names)
    return {name: value * (1 if name == "p" else 100) for name, value in zip(names, found, strict=True)}


def _stacked(cubes: Sequence[Cube], steps: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Outcomes of the prompts that all runs have been judged on at these steps: (S, N, K) of each run."""
    tables = [table[list(own)] for cube, own in zip(cubes, steps, strict=True) for table in cube.values()]
    joined = pd.concat(tables, axis=1, join="inner").dropna().sort_index()
    if len(joined) < 2:
        raise InputError(f"{len(joined)} prompts were judged for all of these runs: a comparison needs at least 2")
    outcomes_SNK = joined.to_numpy(dtype=float).reshape(len(joined), len(tables), -1).transpose(1, 0, 2)
    return np.split(outcomes_SNK, np.cumsum([len(cube) for cube in cubes])[:-1])


def _with_measures(table: pd.DataFrame, outcomes: pd.DataFrame) -> pd.DataFrame:
    """Adds what `win_rates` measures of the final checkpoint, mean over seeds."""
    rates = win_rates(outcomes, judge="")
    names = ["order_consistency", *_MEASURES.values(), *_OF_THE_JUDGE]
    means = rates.groupby(["model", "run", "step"])[names].mean().reset_index().rename(columns={"step": "final_step"})
    return table.merge(means, on=["model", "run", "final_step"], how="left", validate="1:1")


def write_csv(table: pd.DataFrame, path: Path | str) -> None:
    """Writes a table as CSV, atomically; numbers keep all their digits."""
    with atomic_file(path) as temporary:
        table.to_csv(temporary, index=False)

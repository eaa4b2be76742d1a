"""Win rates with intervals, paired tests between runs, and the results table. Everything is seeded.

The unit of resampling is the prompt: all seeds of a run answer the same prompts, so outcomes of one prompt stay
together (Miller, "Adding Error Bars to Evals", arXiv 2411.00640). Rates and their differences are in per cent.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from po_dynamics.errors import InputError
from po_dynamics.objectives.families import Runs, parent_of
from po_dynamics.storage.atomic import atomic_file
from po_dynamics.storage.parquet import read_table

DRAWS = 4000  # bootstrap resamples
FLIPS = 9999  # random sign patterns of the randomisation test: the smallest p is 1e-4
LEVEL = 0.95
RUN = ["model", "run", "seed"]
_PREFERENCES = ["preference", "preference_swapped"]
_MEASURES = {"n_tokens": "mean_length", "kl": "kl_to_sft", "reward": "mean_reward", "degenerate": "degenerate"}


def load_outcomes(evaluations: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per judged response of all runs.

    Args:
        evaluations: mappings with `model, run, seed` and the paths `responses` and `annotations` of one folder.

    Returns:
        `model, run, seed, step, id, preference, preference_swapped, outcome`, and of the response `n_tokens, kl,
        reward, degenerate`. `outcome` is the mean of the two orders: 1 a win over the SFT model, 0.5 a tie, 0 a loss.

    Raises:
        InputError: when the two tables of a folder are not of the same responses, or preferences leave [0, 1].
    """
    tables = []
    for entry in evaluations:
        keys = ["step", "id"]
        responses = read_table(entry["responses"], [*keys, *_MEASURES]).to_pandas()
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
        tables.append(table.drop(columns="_merge").assign(**{key: entry[key] for key in RUN}))
    if not tables:
        raise InputError("no evaluations given: nothing was judged")
    outcomes = pd.concat(tables, ignore_index=True)
    if (twice := outcomes.duplicated([*RUN, "step", "id"])).any():
        raise InputError(
            f"{twice.sum()} responses are given twice, such as of {outcomes.loc[twice, RUN].iloc[0].to_dict()}"
        )
    outcomes["outcome"] = outcomes[_PREFERENCES].mean(axis=1, skipna=False)
    return outcomes[[*RUN, "step", "id", *_PREFERENCES, "outcome", *_MEASURES]]


def win_rates(outcomes: pd.DataFrame, judge: str) -> pd.DataFrame:
    """Win rate over the SFT model per `model, run, seed, step`, with a 95 % bootstrap interval over prompts.

    Returns:
        `model, run, seed, step, judge, win_rate, low, high, n, n_missing, order_consistency, mean_length, kl_to_sft,
        mean_reward, degenerate`: rates in per cent, length in tokens, KL in nats per response. `order_consistency` is
        the share of prompts with the same verdict in both orders; `n_missing` prompts have none and do not count.
    """
    rows = []
    for (model, run, seed), table in outcomes.groupby(RUN, sort=True):
        rates = table.pivot(index="id", columns="step", values="outcome").sort_index()
        low, high = interval(rates.to_numpy())
        for column, (step, group) in enumerate(table.groupby("step", sort=True)):
            judged = group.dropna(subset=_PREFERENCES)
            verdicts = np.sign(judged[_PREFERENCES].to_numpy() - 0.5)
            rows.append(
                {"model": model, "run": run, "seed": seed, "step": step, "judge": judge}
                | {"win_rate": 100 * judged["outcome"].mean(), "low": 100 * low[column], "high": 100 * high[column]}
                | {"n": len(judged), "n_missing": len(group) - len(judged)}
                | {"order_consistency": 100 * float(np.mean(verdicts[:, 0] == verdicts[:, 1]))}
                | {name: group[column_].astype(float).mean() for column_, name in _MEASURES.items()}
            )
    table = pd.DataFrame(rows)
    table["degenerate"] *= 100
    return table


def interval(
    values_NK: np.ndarray, *, rates: bool = True, level: float = LEVEL, draws: int = DRAWS, seed: int = 0
) -> np.ndarray:
    """Percentile bootstrap interval of the mean over N prompts of each of K columns: (2, K).

    NaN is missing. The columns share their resamples. A column of `rates` that is all 0 or all 1 shows the bootstrap no
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
        if rates and len(given) and given.min() == given.max() and given[0] in (0, 1):
            exact = scipy_stats.binomtest(int(given.sum()), len(given)).proportion_ci(level, "exact")
            bounds[:, column] = exact.low, exact.high
    return bounds


@functools.lru_cache(maxsize=2)
def _resamples(n: int, draws: int, seed: int) -> np.ndarray:
    """How often each of n prompts is in each resample: (draws, n)."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws).astype(float)


def sign_flip_p(differences: np.ndarray, flips: int = FLIPS, seed: int = 0) -> float:
    """Two-sided randomisation test that paired differences are symmetric about 0 (Fisher's, by random sign flips)."""
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(flips, len(differences)))
    threshold = abs(differences.sum()) * (1 - 1e-12)  # rounding must not make a tie with the data an exceedance less
    return float((1 + np.sum(np.abs(signs @ differences) >= threshold)) / (1 + flips))


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's step-down adjustment of p values; NaN stays NaN and does not count."""
    adjusted = np.full(len(p_values), np.nan)
    order = [i for i in np.argsort(p_values) if not np.isnan(p_values[i])]
    worst = 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted


def detectable_difference(differences: np.ndarray, power: float = 0.8, level: float = LEVEL) -> float:
    """The smallest true mean difference that a paired test at this level finds with this power, in the unit given."""
    z = scipy_stats.norm.ppf((1 + level) / 2) + scipy_stats.norm.ppf(power)
    return float(z * np.std(differences, ddof=1) / np.sqrt(len(differences)))


def results_table(outcomes: pd.DataFrame, runs: Runs) -> pd.DataFrame:
    """The paper's Table 1 with intervals: a row per model and run, at the final and at the best checkpoint.

    Args:
        outcomes: of `load_outcomes`.
        runs: `objective` and `family` by run name; a run without an entry (the base model) has no parent.

    Returns:
        * `model, run, objective, n_seeds, n`;
        * `final_step, final, final_std, final_low, final_high` and the same for `peak` (best mean over seeds): mean and
          sample standard deviation over seeds (NaN for one), interval over prompts. The peak is chosen on the prompts
          that it is reported on, so it is optimistic;
        * `parent` (dpo or ppo) and `difference, difference_low, difference_high, p, p_holm, detectable`: paired
          difference at the final checkpoint, over the seeds in common, Holm-corrected over the runs of the model;
        * `peak_difference…`: the same at the best checkpoints, each chosen on one half of the prompts and scored on
          the other (cross-fitted), so free of that optimism;
        * at the final checkpoint: `order_consistency, mean_length, kl_to_sft, mean_reward, degenerate`.
    """
    rows: list[dict[str, Any]] = []
    for model, of_model in outcomes.groupby("model", sort=True):
        cubes = {str(run): _cube(table) for run, table in of_model.groupby("run", sort=True)}
        first = len(rows)
        for run in _ordered(cubes, runs):
            parent = parent_of(run, runs) if run in runs else None
            row = {"model": model, "run": run, "objective": runs.get(run, {}).get("objective", run)}
            rows.append(row | _levels(cubes[run]) | _against(cubes[run], cubes.get(parent or ""), parent))
        for name in ("p", "peak_p"):
            for row, p in zip(rows[first:], holm(np.array([row[name] for row in rows[first:]])), strict=True):
                row[f"{name}_holm"] = p
    return _with_measures(pd.DataFrame(rows), outcomes)


def _ordered(cubes: Iterable[str], runs: Mapping[str, Any]) -> list[str]:
    """Runs without an entry (base) first, then in the order of the configuration."""
    position = {name: i for i, name in enumerate(runs)}
    return sorted(cubes, key=lambda run: (position.get(run, -1), run))


def _cube(table: pd.DataFrame) -> dict[int, pd.DataFrame]:
    """Outcomes by seed: prompts (rows) × steps (columns), the steps that every seed has."""
    seeds = table["seed"].unique().tolist()
    cube = {seed: table[table["seed"] == seed].pivot(index="id", columns="step", values="outcome") for seed in seeds}
    steps = sorted(set.intersection(*(set(t.columns) for t in cube.values())))
    return {seed: t[steps].sort_index() for seed, t in cube.items()}


def _mean(cube: Mapping[int, pd.DataFrame], seeds: Iterable[int] | None = None) -> pd.DataFrame:
    """Mean outcome over seeds, prompts × steps: all seeds of a prompt are one observation."""
    return pd.concat([cube[seed] for seed in (cube if seeds is None else seeds)]).groupby(level=0).mean()


def _levels(cube: Mapping[int, pd.DataFrame]) -> dict[str, Any]:
    """Win rates at the final and at the best checkpoint: mean and deviation over seeds, interval over prompts."""
    mean = _mean(cube)
    row: dict[str, Any] = {"n_seeds": len(cube), "n": len(mean)}
    steps = mean.columns.to_numpy(dtype=int)
    for name, step in (("final", steps[-1]), ("peak", steps[mean.mean().to_numpy().argmax()])):
        of_seeds = [100 * table[step].mean() for table in cube.values()]
        low, high = 100 * interval(mean[[step]].to_numpy())[:, 0]
        std = np.std(of_seeds, ddof=1) if len(of_seeds) > 1 else np.nan
        row |= {f"{name}_step": int(step), name: np.mean(of_seeds), f"{name}_std": std}
        row |= {f"{name}_low": low, f"{name}_high": high}
    return row


def _against(cube: Mapping[int, pd.DataFrame], parent: Mapping[int, pd.DataFrame] | None, name: str | None) -> dict:
    """Paired differences to the parent, at the final and at the cross-fitted best checkpoint."""
    columns = ("difference", "difference_low", "difference_high", "p", "detectable")
    row: dict[str, Any] = {"parent": name if parent else None}
    ours: pd.DataFrame | None = None
    if parent:
        seeds = sorted(set(cube) & set(parent)) or None
        ours, theirs = _mean(cube, seeds), _mean(parent, seeds)
    for prefix, choose in (("", lambda table: table.iloc[:, -1]), ("peak_", _cross_fitted_peak)):
        values = [np.nan] * len(columns)
        if ours is not None:
            values = _compare((choose(ours) - choose(theirs)).dropna().to_numpy())
        row |= {prefix + column: value for column, value in zip(columns, values, strict=True)}
    return row


def _compare(differences: np.ndarray) -> list[float]:
    """Mean difference of paired outcomes, its interval, p and what was detectable; in per cent but p."""
    if len(differences) < 2:
        raise InputError(f"{len(differences)} prompts were judged for both runs: a comparison needs at least 2")
    low, high = interval(differences[:, None], rates=False)[:, 0]
    p = sign_flip_p(differences)
    return [100 * differences.mean(), 100 * low, 100 * high, p, 100 * detectable_difference(differences)]


def _cross_fitted_peak(mean: pd.DataFrame) -> pd.Series:
    """Per prompt, the outcome at the checkpoint that is best on the other half of the prompts."""
    half = np.random.default_rng(0).permutation(len(mean)) % 2
    return pd.concat([mean.loc[half == i, mean[half != i].mean().idxmax()] for i in (0, 1)]).sort_index()


def _with_measures(table: pd.DataFrame, outcomes: pd.DataFrame) -> pd.DataFrame:
    """Adds what `win_rates` measures of the final checkpoint, mean over seeds."""
    rates = win_rates(outcomes, judge="")
    names = ["order_consistency", *_MEASURES.values()]
    means = rates.groupby(["model", "run", "step"])[names].mean().reset_index().rename(columns={"step": "final_step"})
    return table.merge(means, on=["model", "run", "final_step"], how="left", validate="1:1")


def write_csv(table: pd.DataFrame, path: Path | str) -> None:
    """Writes a table as CSV, atomically; numbers keep all their digits."""
    with atomic_file(path) as temporary:
        table.to_csv(temporary, index=False)

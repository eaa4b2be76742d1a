"""Agreement of two judges on the same pairs, and of the orders in which they put runs."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from po_dynamics.errors import InputError

_KEYS = ["model", "run", "seed", "step", "id"]


class Agreement(NamedTuple):
    """Of verdicts (win, tie, loss) on `n` pairs: the share that agree, and Cohen's κ (1960), agreement beyond chance.

    κ is NaN where both judges always say the same one thing: nothing shows whether they know it.
    """

    n: int
    raw: float
    kappa: float


def verdicts(outcomes_N: np.ndarray) -> np.ndarray:
    """1 a win, 0 a tie, −1 a loss; NaN where there is none."""
    return np.sign(np.asarray(outcomes_N, dtype=float) - 0.5)


def agreement(ours_N: np.ndarray, theirs_N: np.ndarray) -> Agreement:
    """Of two judges' outcomes in [0, 1] of the same pairs; pairs that either did not judge do not count."""
    both = ~(np.isnan(ours_N) | np.isnan(theirs_N))
    ours, theirs = verdicts(ours_N[both]), verdicts(theirs_N[both])
    if not len(ours):
        return Agreement(0, math.nan, math.nan)
    raw = float(np.mean(ours == theirs))
    chance = sum(float(np.mean(ours == verdict) * np.mean(theirs == verdict)) for verdict in (-1, 0, 1))
    return Agreement(len(ours), raw, (raw - chance) / (1 - chance) if chance < 1 else math.nan)


def judges_agree(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """How far two judges agree on the same responses, per model.

    Args:
        ours: `model, run, seed, step, id, outcome`, of one judge.
        theirs: the same of another; the responses that both judged are compared.

    Returns:
        `model, n, agreement, kappa` (of verdicts) and, of the last checkpoint that both judged of each run, `n_runs,
        spearman, kendall`: rank correlations of win rates (NaN with fewer than three runs).

    Raises:
        InputError: when there is no response in common.
    """
    both = ours[[*_KEYS, "outcome"]].merge(theirs[[*_KEYS, "outcome"]], on=_KEYS, suffixes=("", "_theirs"))
    if both.empty:
        raise InputError("the two judges have no response in common: give evaluations of the same experiment")
    rows = []
    for model, table in both.groupby("model", sort=True):
        found = agreement(table["outcome"].to_numpy(float), table["outcome_theirs"].to_numpy(float))
        rates = _final_rates(table)
        row = {"model": model, "n": found.n, "agreement": found.raw, "kappa": found.kappa, "n_runs": len(rates)}
        for name, correlation in (("spearman", scipy_stats.spearmanr), ("kendall", scipy_stats.kendalltau)):
            row[name] = float(correlation(*rates.to_numpy().T).statistic) if len(rates) > 2 else math.nan
        rows.append(row)
    return pd.DataFrame(rows)


def _final_rates(table: pd.DataFrame) -> pd.DataFrame:
    """Both judges' win rates of each run, at its last step, over all its seeds."""
    final = table["step"] == table.groupby("run")["step"].transform("max")
    return table[final].groupby("run")[["outcome", "outcome_theirs"]].mean()

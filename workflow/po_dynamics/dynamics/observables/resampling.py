"""Statistics of resampled rows, all resamples at once: a resample is a weight, how often it holds each row.

Weights are arrays (D, N), of D resamples of N rows. One row of ones gives the statistic of the data themselves.
"""

from __future__ import annotations

import math

import numpy as np


def block_weights(run_N: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Weights (D, N) that resample runs and, within each run drawn, blocks of neighbouring rows (moving blocks).

    Neighbours share a checkpoint, so they are no independent rows: a block holds max(2, n^⅓) of a run's n. Rows of a
    run are in order of their steps.
    """
    random, runs = np.random.default_rng(seed), np.unique(run_N)
    weights = np.zeros((draws, len(run_N)))
    for weight in weights:
        for run in random.choice(runs, len(runs)):
            rows = np.flatnonzero(run_N == run)
            length = min(len(rows), max(2, round(len(rows) ** (1 / 3))))
            starts = random.integers(len(rows) - length + 1, size=math.ceil(len(rows) / length))
            drawn = (starts[:, None] + np.arange(length)).ravel()[: len(rows)]
            np.add.at(weight, rows[drawn], 1)
    return weights


def cluster_weights(clusters: int, draws: int, seed: int) -> np.ndarray:
    """Weights (D, C) that resample clusters."""
    random = np.random.default_rng(seed)
    return random.multinomial(clusters, np.full(clusters, 1 / clusters), size=draws).astype(np.float64)


class Ranked:
    """Values (N,) in order, once; their mid-ranks in any resample follow without sorting again."""

    def __init__(self, values_N: np.ndarray) -> None:
        order = np.argsort(values_N, kind="stable")
        new = np.diff(values_N[order], prepend=np.nan) != 0  # the first of each group of ties
        self.order, self.starts = order, np.flatnonzero(new)
        self.tie_N = np.empty(len(order), dtype=np.int64)
        self.tie_N[order] = np.cumsum(new) - 1

    def ranks(self, weight_DN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mid-ranks (D, N) about their weighted mean, ties sharing theirs, and their weighted sum of squares (D,)."""
        tied = np.add.reduceat(weight_DN[:, self.order], self.starts, axis=1)
        ends = np.cumsum(tied, axis=1)
        middle = ends - tied / 2 - ends[:, -1:] / 2  # the mean of mid-ranks is half of the total weight
        return middle[:, self.tie_N], np.einsum("dk,dk,dk->d", tied, middle, middle)


def rank_correlation(x: Ranked, y: Ranked, weight_DN: np.ndarray) -> np.ndarray:
    """Spearman's ρ (D,) of each resample; nan where one side is constant."""
    (x_DN, xx_D), (y_DN, yy_D) = x.ranks(weight_DN), y.ranks(weight_DN)
    product_D = np.einsum("dn,dn,dn->d", weight_DN, x_DN, y_DN)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where((xx_D > 0) & (yy_D > 0), product_D / np.sqrt(xx_D * yy_D), np.nan))


def percentiles(resampled_D: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The interval; nan where fewer than half of the resamples have a value."""
    known = resampled_D[np.isfinite(resampled_D)]
    if 2 * len(known) <= len(resampled_D):
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

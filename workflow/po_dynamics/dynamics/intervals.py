"""Intervals of an inner product of two means, G = ⟨v, u⟩: the choice of D and the choice of D′ both count.

    G = mean over D′ and D of M_ij = ⟨a_j, b_i⟩,   a_j the gradient of a response's NLL, b_i of a training sample's loss

Of the matrix M only the means of rows and columns are stored. So a resampled G is approximated to first order, by the
resampled mean of the columns plus the resampled mean of the rows minus G (the Hájek projection): left out is the
interaction Σ (w_i − 1/n)(w_j − 1/m) M_ij. The means themselves carry the noise of the other side, which adds that
variance twice where the true one has it once: where noise is large, intervals are too wide rather than too narrow.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

DRAWS = 2000  # bootstrap samples


class Side(NamedTuple):
    """Units of one side, D or D′, that are resampled: sums (U,) and sizes (U,) with mean Σ sums / Σ sizes."""

    sums: np.ndarray
    sizes: np.ndarray

    @property
    def mean(self) -> float:
        """nan for no units."""
        total = self.sizes.sum()
        return float(self.sums.sum() / total) if total > 0 else math.nan

    def kept(self, keep: np.ndarray) -> Side:
        """The units that a mask keeps."""
        return Side(self.sums[keep], self.sizes[keep])

    def resampled(self, seed: int) -> np.ndarray:
        """Means (DRAWS,) of bootstrap samples; equal for sides of as many units and one seed, so that they pair."""
        draws = _draws(len(self.sums), seed)
        return np.asarray((draws @ self.sums) / (draws @ self.sizes))

    @property
    def variance(self) -> float:
        """Of one unit's influence on the mean, so that the mean's variance is this / U."""
        influence = (self.sums - self.mean * self.sizes) / self.sizes.mean()
        return float(influence.var(ddof=1)) if len(influence) > 1 else math.nan


def controlled(side: Side, control_U: np.ndarray) -> Side:
    """The side with the noise taken out that goes with a control variate, whose expectation is known to be 0.

    By regression of the units' influence on it, so that components that add up still do.
    """
    spread = control_U - control_U.mean()
    if not (spread @ spread) > 0:
        return side
    slope = (side.sums - side.mean * side.sizes) @ spread / (spread @ spread)
    return Side(side.sums - slope * control_U, side.sizes)


class Interval(NamedTuple):
    """G, its percentile interval, a two-sided p of G = 0, and how many samples of each side its sign would need."""

    G: float
    G_low: float
    G_high: float
    p_value: float
    samples_needed: float

    @property
    def resolved(self) -> bool:
        """Whether the sign is known: the interval excludes 0."""
        return self.G_low > 0 or self.G_high < 0


def interval(
    train: Side, final: Side | None = None, keep: np.ndarray | None = None, level: float = 0.95, seed: int = 0
) -> Interval:
    """Two-way interval of the samples of D given and of those of D′ that `keep` says (None: all).

    Where D′ has no side it is of D alone. Without some of D′, G changes by what the mean over D′ changes, to first
    order. p is twice the smaller share of resampled G beyond 0, at least
    2 / (DRAWS + 1). `samples_needed` solves |G| = z · sqrt((σ_D² + σ_D′²) / n) for n samples of D and n of D′.
    """
    kept = final if final is None or keep is None else final.kept(keep)
    if not len(train.sums) or (kept is not None and not len(kept.sums)):
        return Interval(math.nan, math.nan, math.nan, math.nan, math.nan)
    g, resampled, variance = train.mean, train.resampled(seed), train.variance
    if final is not None and kept is not None:
        g, resampled = g + (kept.mean - final.mean), resampled + kept.resampled(seed + 1) - final.mean
        variance += kept.variance
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    beyond = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    p = min(1.0, 2 * (beyond + 1) / (DRAWS + 1))
    return Interval(g, float(low), float(high), p, samples_needed(g, variance, level))


def samples_needed(g: float, variance: float, level: float = 0.95) -> float:
    """Samples of each side at which an interval of this level around g ends at 0; inf for g = 0."""
    z = norm.ppf((1 + level) / 2)
    return float(math.ceil(z**2 * variance / g**2)) if g and math.isfinite(variance) else math.inf


@functools.lru_cache(maxsize=8)
def _draws(count: int, seed: int) -> np.ndarray:
    """How often each unit is in each bootstrap sample."""
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=DRAWS)
    return draws.astype(np.float64)

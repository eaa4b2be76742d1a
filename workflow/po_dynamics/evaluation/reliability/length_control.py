"""Win rates without the effect of length (Dubois et al. 2024, arXiv 2404.04475), fitted to one candidate alone.

logit P(win) = b + w · tanh(Δ / sd(Δ)), with Δ the candidate's characters beyond the baseline's; the length-controlled
rate is the model's at Δ = 0, σ(b). This is alpaca-eval's `length_controlled_minimal`. Its published numbers also use a
difficulty of each of its 805 instructions and its judge's verdicts on two padded baselines; neither exists for other
prompts, judges or baselines.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import special
from scipy import stats as scipy_stats

LEVEL = 0.95
TRUSTED = (0.25, 0.75)  # raw win rates between which there are enough wins and losses to see what length does
_STEPS = 50  # of Newton's method; six are usual


class Controlled(NamedTuple):
    """A length-controlled win rate in [0, 1] and its 95 % interval.

    Attributes:
        effect: w, the log-odds that one standard deviation of length and more is worth (tanh 1 = 0.76 of it); 0 where
            all lengths differ by the same.
        extrapolates: the raw rate lies outside `TRUSTED`, or all answers are longer (or all shorter) than the
            baseline's, so that no prompt shows what happens at equal length.

    All numbers are NaN where the fit has no maximum: length alone separates wins from losses.
    """

    rate: float
    low: float
    high: float
    effect: float
    extrapolates: bool


def length_controlled(outcomes_N: np.ndarray, differences_N: np.ndarray) -> Controlled:
    """The win rate of answers as long as the baseline's.

    Args:
        outcomes_N: in [0, 1], 1 a win; NaN is missing and does not count.
        differences_N: the candidate's length minus the baseline's, characters.
    """
    present = ~np.isnan(outcomes_N)
    outcomes_N, differences_N = outcomes_N[present], np.asarray(differences_N, dtype=float)[present]
    if not len(outcomes_N):
        return Controlled(math.nan, math.nan, math.nan, math.nan, True)
    raw = float(outcomes_N.mean())
    overlap = differences_N.min() <= 0 <= differences_N.max()
    extrapolates = not (overlap and TRUSTED[0] <= raw <= TRUSTED[1])
    if raw in (0, 1):  # no fit has a maximum; the raw rate has an exact interval (Clopper and Pearson)
        exact = scipy_stats.binomtest(round(raw * len(outcomes_N)), len(outcomes_N)).proportion_ci(LEVEL, "exact")
        return Controlled(raw, exact.low, exact.high, math.nan, extrapolates)
    return Controlled(*_at_equal_length(outcomes_N, differences_N), extrapolates)


def _at_equal_length(outcomes_N: np.ndarray, differences_N: np.ndarray) -> tuple[float, float, float, float]:
    """(rate, low, high, w); with lengths that all differ by the same, the design is the intercept alone."""
    deviation = differences_N.std(ddof=1) if len(differences_N) > 1 else 0.0
    columns = [np.ones_like(outcomes_N), *([np.tanh(differences_N / deviation)] if deviation > 0 else [])]
    fitted = fit(outcomes_N, np.stack(columns, 1))
    if fitted is None:
        return (math.nan,) * 4
    weights, covariance = fitted
    freedom = len(outcomes_N) - len(weights)
    half = scipy_stats.t.ppf((1 + LEVEL) / 2, freedom) * math.sqrt(covariance[0, 0]) if freedom > 0 else math.nan
    rate, low, high = (float(special.expit(weights[0] + shift)) for shift in (0, -half, half))
    return rate, low, high, float(weights[1]) if len(weights) > 1 else 0.0


def fit(outcomes_N: np.ndarray, design_NF: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Logistic regression of outcomes in [0, 1] by Newton's method; None where the likelihood has no maximum.

    Returns:
        Weights (F,) and their covariance (F, F) by the sandwich formula, which holds for outcomes that are
        probabilities or means of two orders (Papke and Wooldridge 1996), with the factor N / (N − F).
    """
    rows, weights = design_NF.shape[0], np.zeros(design_NF.shape[1])
    for _ in range(_STEPS):
        means_N = special.expit(design_NF @ weights)
        hessian = design_NF.T @ (design_NF * (means_N * (1 - means_N))[:, None])
        if np.linalg.cond(hessian) > 1e10:
            return None
        step = np.linalg.solve(hessian, design_NF.T @ (outcomes_N - means_N))
        weights = weights + step
        if np.abs(step).max() < 1e-10:
            bread = np.linalg.inv(hessian)
            scores_NF = design_NF * (outcomes_N - means_N)[:, None]
            return weights, bread @ (scores_NF.T @ scores_NF) @ bread * rows / max(1, rows - len(weights))
    return None

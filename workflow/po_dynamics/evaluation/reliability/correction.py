"""Few true labels correct a judge: prediction-powered inference for a win rate.

With judged outcomes f of all prompts and true ones y of n of them, the estimate is
λ · mean(f over the N others) + mean(y − λ f over the n). It is unbiased whatever the judge (Angelopoulos et al. 2023,
arXiv 2301.09633); λ is the one with the least variance (PPI++, arXiv 2311.01453). A judge that is worth nothing gets
λ ≈ 0, which leaves the labels alone; a perfect one N / (N + n), which is the mean over all prompts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import stats as scipy_stats

from po_dynamics.errors import InputError

LEVEL = 0.95
MIN_LABELS = 30  # fewer make neither λ nor the interval worth anything


class Corrected(NamedTuple):
    """A corrected win rate in [0, 1], its 95 % interval, λ, and how many prompts have a true label."""

    rate: float
    low: float
    high: float
    weight: float
    n_labels: int


def corrected(judged_N: np.ndarray, true_N: np.ndarray) -> Corrected:
    """The true win rate, from the judge's outcome of every prompt and the true one of some.

    The labelled prompts must be drawn at random from all: of the prompts that someone found interesting, the
    correction is of those.

    Args:
        judged_N: in [0, 1]; NaN is missing and does not count.
        true_N: in [0, 1]; NaN where there is no label.

    Raises:
        InputError: fewer than `MIN_LABELS` judged prompts with a label.
    """
    judged = ~np.isnan(judged_N)
    labelled = judged & ~np.isnan(true_N)
    f_n, y_n, f_others = judged_N[labelled], true_N[labelled], judged_N[judged & ~labelled]
    if len(y_n) < MIN_LABELS:
        raise InputError(f"{len(y_n)} judged prompts have a true label; a correction needs {MIN_LABELS} at least")
    weight = _weight(f_n, y_n, f_others)
    rectifiers_n = y_n - weight * f_n
    rate = rectifiers_n.mean() + (weight * f_others.mean() if weight else 0.0)
    variance = rectifiers_n.var(ddof=1) / len(y_n)
    variance += weight**2 * f_others.var(ddof=1) / len(f_others) if weight else 0.0
    half = scipy_stats.t.ppf((1 + LEVEL) / 2, len(y_n) - 1) * math.sqrt(variance)  # few labels: t, not normal
    return Corrected(float(rate), float(max(0, rate - half)), float(min(1, rate + half)), weight, len(y_n))


def _weight(f_n: np.ndarray, y_n: np.ndarray, f_others: np.ndarray) -> float:
    """λ = cov(y, f) / ((1 + n/N) var(f)), in [0, 1]; 0 where the judge never varies or all prompts have labels.

    Both moments are of the labelled prompts. With var(f) of all prompts, as in the paper, λ moves with the draw of the
    labels even for a judge that is always right, and intervals came out too short.
    """
    if len(f_others) < 2 or f_n.var() == 0:
        return 0.0
    moments = np.cov(y_n, f_n)
    return float(np.clip(moments[0, 1] / ((1 + len(f_n) / len(f_others)) * moments[1, 1]), 0, 1))

"""Rank correlations with bootstrap intervals, and means of paired differences."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

DRAWS = 2000


class Estimate(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


def spearman(x_DN: np.ndarray, y_DN: np.ndarray) -> np.ndarray:
    """Spearman's ρ of each row (D,); nan where either row is constant."""
    if not len(x_DN):
        return np.empty(0)
    ranks = [rankdata(values, axis=1) for values in (x_DN, y_DN)]
    x_DN, y_DN = (values - values.mean(1, keepdims=True) for values in ranks)
    norms_D = np.sqrt((x_DN**2).sum(1) * (y_DN**2).sum(1))
    return np.divide((x_DN * y_DN).sum(1), norms_D, out=np.full(len(x_DN), np.nan), where=norms_D > 0)


def resampled(count: int, seed: int, draws: int = DRAWS) -> np.ndarray:
    """(D, count) indices, drawn with replacement."""
    return np.random.default_rng(seed).integers(count, size=(draws, count))


def percentiles(value: float, draws_D: np.ndarray) -> Estimate:
    """The value with the central 95 % of its bootstrap draws; no interval without a draw that is a number."""
    found = draws_D[np.isfinite(draws_D)]
    low, high = np.quantile(found, [0.025, 0.975]) if len(found) else (math.nan, math.nan)
    return Estimate(float(value), float(low), float(high))


def rank_correlation(x_N: np.ndarray, y_N: np.ndarray, draws_DN: np.ndarray) -> Estimate:
    """Spearman's ρ, with the interval over the given draws of rows."""
    return percentiles(spearman(x_N[None], y_N[None])[0], spearman(x_N[draws_DN], y_N[draws_DN]))


def mean_difference(first_N: np.ndarray, second_N: np.ndarray, seed: int = 0) -> Estimate:
    """Mean of second − first, paired, with the interval over rows."""
    difference_N = np.asarray(second_N, float) - np.asarray(first_N, float)
    return percentiles(difference_N.mean(), difference_N[resampled(len(difference_N), seed)].mean(1))

"""Differences between runs. The unit of a method is a training: prompts are paired across runs, seeds are not.

From three trainings a side on, intervals resample trainings and prompts, and a test exchanges whole trainings between
the two runs. With fewer, training noise cannot be told from a difference between methods: the interval resamples the
prompts alone, is about these very models, and there is no test.

Arrays are outcomes in [0, 1] of S trainings, N prompts and K checkpoints, `outcomes_SNK`, without gaps. With several
checkpoints a run's rate is that at its best one, cross-fitted: chosen on one half of the prompts, by the mean over its
trainings, and scored on the other half, in turn.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy import optimize, special
from scipy import stats as scipy_stats

MIN_TRAININGS = 3  # a side, for an interval and a test about methods
DRAWS = 4000  # bootstrap resamples
ARRANGEMENTS = 10_000  # of trainings to two runs: all where there are no more, else so many at random
LEVEL = 0.95
POWER = 0.8


class Comparison(NamedTuple):
    """A difference of two runs, in the unit of the outcomes."""

    difference: float
    low: float  # of the 95 % interval
    high: float
    p: float  # of the exchange of trainings; nan with fewer than three a side
    detectable: float  # the smallest true difference found with `POWER`; nan where no difference could be
    spread: float  # sample standard deviation over the other run's trainings; nan for one


class Halves(NamedTuple):
    """Mean outcomes of every training on the two halves of the prompts, and the halves' shares of them."""

    rates_SHK: np.ndarray
    share_H: np.ndarray


def compare(ours_SNK: np.ndarray, theirs_SNK: np.ndarray) -> Comparison:
    """Our rate minus theirs, over the same N ≥ 2 prompts."""
    ours, theirs = halves(ours_SNK), halves(theirs_SNK)
    counts = len(ours_SNK), len(theirs_SNK)
    values = of_trainings(ours), of_trainings(theirs)
    low, high = _bounds(_resampled(ours_SNK, counts, 0) - _resampled(theirs_SNK, counts, 1), counts)
    tested = min(counts) >= MIN_TRAININGS
    return Comparison(
        difference=float(values[0].mean() - values[1].mean()),
        low=low,
        high=high,
        p=exchange_p(ours.rates_SHK, theirs.rates_SHK, ours.share_H) if tested else math.nan,
        detectable=detectable_difference(_pooled_deviation(*values), *counts) if tested else math.nan,
        spread=float(values[1].std(ddof=1)) if counts[1] > 1 else math.nan,
    )


def interval(outcomes_SNK: np.ndarray) -> tuple[float, float]:
    """95 % interval of one run's rate, over trainings and prompts."""
    counts = (len(outcomes_SNK),)
    return _bounds(_resampled(outcomes_SNK, counts, 0), counts)


# ----------------------------------------------------------------------------------------------- the best checkpoint


def halves(outcomes_SNK: np.ndarray) -> Halves:
    """The prompts in two halves, the same ones for all runs with as many prompts."""
    half_N = half_of(outcomes_SNK.shape[1])
    rates_HSK = np.stack([outcomes_SNK[:, half_N == half].mean(1) for half in (0, 1)])
    return Halves(rates_HSK.transpose(1, 0, 2), np.bincount(half_N) / len(half_N))


def half_of(n: int) -> np.ndarray:
    """0 or 1 for each of n prompts, at random."""
    return np.random.default_rng(0).permutation(n) % 2


def best(rates_HK: np.ndarray) -> np.ndarray:
    """For each half, the checkpoint that is best on the other: (…, H, K) → (…, H)."""
    return rates_HK[..., ::-1, :].argmax(-1)


def cross_fitted(rates_HK: np.ndarray, share_H: np.ndarray) -> np.ndarray:
    """The rate at the best checkpoint, of (…, H, K) mean outcomes."""
    chosen_H = np.take_along_axis(rates_HK, best(rates_HK)[..., None], -1)[..., 0]
    return (chosen_H * share_H).sum(-1)


def of_trainings(run: Halves) -> np.ndarray:
    """(S,): each training's rate at the checkpoints that are best for the run as a whole."""
    chosen_H = best(run.rates_SHK.mean(0))
    return np.asarray((run.rates_SHK[:, (0, 1), chosen_H] * run.share_H).sum(-1))


# ---------------------------------------------------------------------------------------------------------- intervals


def _resampled(outcomes_SNK: np.ndarray, counts: tuple[int, ...], run: int) -> np.ndarray:
    """(D,): the run's rate in bootstrap samples; prompts are the same for every run, trainings are drawn for each.

    S − 1 of the S trainings are drawn with replacement, which leaves the variance of a mean unbiased (Rao and Wu 1988).
    """
    seeds, prompts, steps = outcomes_SNK.shape
    shares_DS = np.full((DRAWS, seeds), 1 / seeds)
    if min(counts) >= MIN_TRAININGS:
        drawn = np.random.default_rng([1, run]).multinomial(seeds - 1, shares_DS[0], size=DRAWS)
        shares_DS = drawn / (seeds - 1)
    half_N, rates = half_of(prompts), []
    for half, weights_DN in enumerate(_prompt_weights(prompts)):
        values_NSK = outcomes_SNK[:, half_N == half].transpose(1, 0, 2)
        rates_DSK = (weights_DN @ values_NSK.reshape(len(values_NSK), -1)).reshape(DRAWS, seeds, steps)
        rates.append(np.einsum("ds,dsk->dk", shares_DS, rates_DSK))
    return cross_fitted(np.stack(rates, 1), np.bincount(half_N) / prompts)


@functools.lru_cache(maxsize=2)
def _prompt_weights(prompts: int) -> list[np.ndarray]:
    """Weights of the prompts of each half in each bootstrap sample, (D, N of the half)."""
    random = np.random.default_rng(0)
    counts = np.bincount(half_of(prompts)).tolist()
    return [random.multinomial(n, np.full(n, 1 / n), size=DRAWS) / n for n in counts]


def _bounds(values_D: np.ndarray, counts: tuple[int, ...]) -> tuple[float, float]:
    """Percentiles; with trainings resampled, those at which a t interval of as many trainings would end.

    A plain percentile interval of few units is too narrow (Hesterberg 2015, arXiv 1411.5279, on expanded percentiles).
    """
    tail = (1 - LEVEL) / 2
    if min(counts) >= MIN_TRAININGS:
        tail = scipy_stats.norm.cdf(scipy_stats.t.ppf(tail, sum(counts) - len(counts)))
    low, high = np.quantile(values_D, [tail, 1 - tail])
    return float(low), float(high)


# --------------------------------------------------------------------------------------------------- test and its power


def exchange_p(ours_SHK: np.ndarray, theirs_SHK: np.ndarray, share_H: np.ndarray) -> float:
    """Two-sided p of the hypothesis that whole trainings might as well be of the other run.

    The share of arrangements of all trainings to two runs of these sizes whose rates differ as much as those seen. The
    best checkpoints are chosen anew in each.
    """
    pooled_SHK = np.concatenate([ours_SHK, theirs_SHK])
    first_AS = _arrangements(len(ours_SHK), len(theirs_SHK))
    sides = (
        cross_fitted(np.einsum("as,shk->ahk", members / members.sum(1, keepdims=True), pooled_SHK), share_H)
        for members in (first_AS, 1 - first_AS)
    )
    sizes_A = np.abs(next(sides) - next(sides))
    return float((sizes_A >= sizes_A[0] - 1e-12).mean())  # rounding must not make a tie an exceedance less


def _arrangements(ours: int, theirs: int) -> np.ndarray:
    """(A, S): 1 where a training is put on our side, 0 on theirs; the first arrangement is the one that was seen."""
    total = ours + theirs
    if math.comb(total, ours) <= ARRANGEMENTS:
        members = np.array(list(itertools.combinations(range(total), ours)))
    else:
        random = np.random.default_rng(0).permuted(np.tile(np.arange(total), (ARRANGEMENTS - 1, 1)), axis=1)
        members = np.vstack([np.arange(ours), random[:, :ours]])
    first_AS = np.zeros((len(members), total))
    np.put_along_axis(first_AS, members, 1, axis=1)
    return first_AS


def attainable_level(ours: int, theirs: int) -> float:
    """The largest p not above 5 % that the exchange of so many trainings can give; 0 where there is none."""
    smallest = (2 if ours == theirs else 1) / min(math.comb(ours + theirs, ours), ARRANGEMENTS)
    return math.floor((1 - LEVEL) / smallest + 1e-9) * smallest


def power(difference: float, deviation: float, ours: int, theirs: int) -> float:
    """The chance that the test finds a true difference and its sign, by the noncentral t distribution.

    `deviation` is the standard deviation of a training's rate between seeds, in the unit of the difference.
    """
    if not (level := attainable_level(ours, theirs)):
        return 0.0
    shift = difference / (deviation * math.sqrt(1 / ours + 1 / theirs))
    return _found(shift, level, ours + theirs - 2)


def _found(shift: float, level: float, freedom: int) -> float:
    return float(1 - special.nctdtr(freedom, shift, scipy_stats.t.ppf(1 - level / 2, freedom)))


def detectable_difference(deviation: float, ours: int, theirs: int) -> float:
    """The smallest true difference that the test finds with `POWER`; nan where p cannot reach 5 %."""
    if not (level := attainable_level(ours, theirs)):
        return math.nan
    freedom = ours + theirs - 2
    shift = optimize.brentq(lambda shift: _found(shift, level, freedom) - POWER, 0.1, 30)
    return float(shift * deviation * math.sqrt(1 / ours + 1 / theirs))


def _pooled_deviation(ours_S: np.ndarray, theirs_S: np.ndarray) -> float:
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in (ours_S, theirs_S))
    return math.sqrt(squares / (len(ours_S) + len(theirs_S) - 2))

"""Comparisons of runs on made-up trainings whose true difference is known."""

import numpy as np
import pytest
from po_dynamics.evaluation import comparisons
from scipy import stats as scipy_stats

PROMPTS = 400


def trainings(random, count, rate=0.6, deviation=0.04, steps=1, difficulty=None):
    """(S, N, K) outcomes: a seed moves the rate of its training with this deviation, prompts have a difficulty."""
    difficulty = random.normal(size=PROMPTS) if difficulty is None else difficulty
    rates = np.clip(rate + deviation * random.normal(size=(count, 1, steps)), 0.02, 0.98)
    noise = random.normal(size=(count, PROMPTS, steps))
    return ((difficulty[:, None] + noise) / np.sqrt(2) < scipy_stats.norm.ppf(rates)).astype(float)


def p_of(ours, theirs):
    return comparisons.exchange_p(*(comparisons.halves(run).rates_SHK for run in (ours, theirs)), np.full(2, 0.5))


def share_called_different(draws, planted, deviation, count=5, steps=1):
    random, found = np.random.default_rng(0), 0
    for _ in range(draws):
        difficulty = random.normal(size=PROMPTS)
        ours = trainings(random, count, 0.6 + planted, deviation, steps, difficulty)
        found += p_of(ours, trainings(random, count, 0.6, deviation, steps, difficulty)) <= 0.05
    return found / draws


@pytest.mark.parametrize("deviation", [0.03, 0.05])
@pytest.mark.parametrize("steps", [1, 5])
def test_two_sets_of_seeds_of_one_method_are_seldom_called_different(deviation, steps):
    assert share_called_different(500, 0.0, deviation, steps=steps) <= 0.07


def test_a_planted_difference_is_found_as_often_as_the_power_calculation_says():
    random = np.random.default_rng(1)
    rates = trainings(random, 20_000, deviation=0.03).mean((1, 2))  # of one difficulty: between trainings alone
    expected = comparisons.power(0.05, rates.std(), 5, 5)
    assert 0.3 < expected < 0.7
    assert share_called_different(500, 0.05, 0.03) == pytest.approx(expected, abs=0.06)
    detectable = comparisons.detectable_difference(rates.std(), 5, 5)
    assert comparisons.power(detectable, rates.std(), 5, 5) == pytest.approx(0.8)
    assert share_called_different(500, detectable, 0.03) == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize(("count", "at_least"), [(3, 0.87), (5, 0.92)])
def test_intervals_hold_the_difference_of_methods(count, at_least):
    """They resample trainings; an interval over prompts would miss it far more often than one time in twenty."""
    random, hits, of_prompts = np.random.default_rng(2), 0, 0
    for _ in range(200):
        difficulty = random.normal(size=PROMPTS)
        pair = [trainings(random, count, rate, 0.04, difficulty=difficulty) for rate in (0.65, 0.6)]
        found = comparisons.compare(*pair)
        hits += found.low <= 0.05 <= found.high
        of_one = comparisons.compare(pair[0][:1], pair[1][:1])
        of_prompts += of_one.low <= 0.05 <= of_one.high
    assert at_least < hits / 200 <= 0.995
    assert of_prompts / 200 < 0.8


def test_two_models_have_an_interval_over_prompts_and_no_test():
    """As in a run of the demo: one training each, 7 points apart on 400 prompts."""
    random = np.random.default_rng(3)
    difficulty = random.normal(size=PROMPTS)
    pair = [trainings(random, 1, rate, 0.0, difficulty=difficulty) for rate in (0.67, 0.6)]
    found = comparisons.compare(*pair)
    assert np.isnan([found.p, found.detectable, found.spread]).all()
    assert found.difference == pytest.approx(pair[0].mean() - pair[1].mean())
    paired = (pair[0] - pair[1]).std() / np.sqrt(PROMPTS)
    assert found.high - found.low == pytest.approx(2 * 1.96 * paired, rel=0.1)  # paired by prompt


def test_the_test_agrees_with_a_permutation_test_of_the_trainings():
    random = np.random.default_rng(4)
    pair = [trainings(random, count) for count in (4, 5)]
    rates = [run.mean((1, 2)) for run in pair]
    exact = scipy_stats.permutation_test(
        rates, lambda a, b: abs(a.mean() - b.mean()), alternative="greater", n_resamples=np.inf
    )
    assert p_of(*pair) == pytest.approx(exact.pvalue)


def test_many_trainings_are_arranged_at_random():
    seen = comparisons._arrangements(9, 9)
    assert seen.shape == (comparisons.ARRANGEMENTS, 18)
    assert (seen.sum(1) == 9).all()
    assert seen[0].tolist() == [1] * 9 + [0] * 9
    random = np.random.default_rng(5)
    assert p_of(trainings(random, 9, 0.8, 0.01), trainings(random, 9, 0.5, 0.01)) <= 5 / comparisons.ARRANGEMENTS


@pytest.mark.parametrize(
    ("ours", "theirs", "level"), [(3, 3, 0), (3, 4, 1 / 35), (4, 4, 2 / 70), (5, 5, 12 / 252), (9, 9, 0.05)]
)
def test_the_level_that_so_many_trainings_can_reach(ours, theirs, level):
    assert comparisons.attainable_level(ours, theirs) == pytest.approx(level)
    assert np.isnan(comparisons.detectable_difference(1.0, ours, theirs)) == (level == 0)
    assert (comparisons.power(3.0, 1.0, ours, theirs) == 0) == (level == 0)


def test_the_cross_fitted_peak_is_not_optimistic():
    """Many equally good checkpoints: the best one looks better than it is, the cross-fitted one does not."""
    naive, fitted = [], []
    for seed in range(30):
        outcomes = np.random.default_rng(seed).integers(0, 2, (1, 100, 30)).astype(float)
        run = comparisons.halves(outcomes)
        naive.append(outcomes.mean(1).max())
        fitted.append(comparisons.cross_fitted(run.rates_SHK[0], run.share_H))
        assert comparisons.of_trainings(run) == pytest.approx(fitted[-1])
    assert np.mean(naive) > 0.57
    assert np.mean(fitted) == pytest.approx(0.5, abs=0.025)


def test_of_one_checkpoint_the_rate_is_the_mean():
    outcomes = trainings(np.random.default_rng(6), 3)[:, :101]
    run = comparisons.halves(outcomes)
    assert comparisons.of_trainings(run) == pytest.approx(outcomes.mean((1, 2)))
    low, high = comparisons.interval(outcomes)
    assert low < outcomes.mean() < high

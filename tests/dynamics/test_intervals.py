"""Two-way intervals: coverage in simulation, where what G is of is known; samples needed; nothing to resample."""

import math

import numpy as np
import pytest
from po_dynamics.dynamics.intervals import Side, controlled, interval, samples_needed

DIMENSIONS = 20


def draw(rng, n, mean, spread):
    return mean + spread * rng.standard_normal((n, DIMENSIONS))


def sides(a_MK, b_NK):
    """Both sides of G = ⟨mean a, mean b⟩ as the probe gives them: a row's product with the other side's mean."""
    return Side(b_NK @ a_MK.mean(0), np.ones(len(b_NK))), Side(a_MK @ b_NK.mean(0), np.ones(len(a_MK)))


@pytest.mark.parametrize(
    ("spread_a", "spread_b", "lowest", "highest", "alone"),  # `alone`: at most, of the intervals over D alone
    [
        (0.3, 1, 182, 198, 200),
        (1, 0.3, 182, 198, 150),
        (1, 1, 182, 198, 179),
        (6, 6, 190, 200, 200),  # noise drowns v and u: too wide
    ],
)
def test_intervals_cover_the_truth_in_95_percent_of_draws(spread_a, spread_b, lowest, highest, alone):
    rng = np.random.default_rng(0)
    mean_a, mean_b = 0.5 * rng.standard_normal((2, DIMENSIONS))
    covered = of_train_alone = 0
    for _ in range(200):
        train, final = sides(draw(rng, 80, mean_a, spread_a), draw(rng, 80, mean_b, spread_b))
        both, one_way = interval(train, final), interval(train)
        assert both.G == one_way.G
        covered += both.G_low <= mean_a @ mean_b <= both.G_high
        of_train_alone += one_way.G_low <= mean_a @ mean_b <= one_way.G_high
    assert lowest <= covered <= highest
    assert of_train_alone <= alone


def test_sizes_weigh_units():
    sums, sizes = np.array([2.0, 9.0, 4.0]), np.array([1.0, 3.0, 2.0])
    assert Side(sums, sizes).mean == 15 / 6
    assert interval(Side(sums, sizes)).G == 15 / 6


def test_what_leaves_the_final_side_changes_g_by_what_its_mean_changes():
    rng = np.random.default_rng(1)
    train, final = sides(draw(rng, 10, 1, 1), draw(rng, 10, 1, 1))
    keep = np.arange(10) > 2
    expected = train.mean + final.sums[3:].mean() - final.mean
    of_kept = interval(train, final, keep)
    np.testing.assert_allclose(of_kept.G, expected)


def test_the_samples_needed_are_those_at_which_the_interval_ends_at_zero():
    """So with ten times as many the sign is known nearly always, with a tenth hardly ever."""
    rng = np.random.default_rng(2)
    mean = np.full(DIMENSIONS, 0.1)
    pilot = interval(*sides(draw(rng, 4000, mean, 0.8), draw(rng, 4000, mean, 0.8)))
    resolved = {
        factor: np.mean(
            [interval(*sides(draw(rng, n, mean, 0.8), draw(rng, n, mean, 0.8))).resolved for _ in range(40)]
        )
        for factor in (0.1, 10)
        for n in [max(2, round(factor * pilot.samples_needed))]
    }
    assert resolved[10] > 0.9
    assert resolved[0.1] < 0.4
    assert samples_needed(0.0, 1.0) == math.inf
    assert samples_needed(0.5, 1.0) == math.ceil(1.959964**2 * 4)


def test_a_control_variate_takes_its_share_of_the_noise_out_and_moves_no_truth():
    rng = np.random.default_rng(3)
    sizes, estimates, widths = rng.integers(1, 4, 200).astype(float), [], []
    for _ in range(200):
        control = rng.standard_normal(200)
        plain = Side(0.3 * sizes + 3 * control + rng.standard_normal(200), sizes)
        side = controlled(plain, control)
        parts = [controlled(Side(part, sizes), control) for part in (plain.sums * 0.2, plain.sums * 0.8)]
        assert sum(part.mean for part in parts) == pytest.approx(side.mean)
        estimates.append(side.mean)
        widths.append(side.variance / plain.variance)
    assert np.mean(estimates) == pytest.approx(0.3, abs=0.01)
    assert np.mean(widths) == pytest.approx(0.1, abs=0.03)
    assert controlled(plain, np.zeros(200)) is plain


def test_no_samples_no_interval():
    empty, some = Side(np.array([]), np.array([])), Side(np.ones(3), np.ones(3))
    assert math.isnan(interval(empty).G)
    assert math.isnan(interval(some, some, np.zeros(3, dtype=bool)).G_low)
    assert not interval(empty).resolved
    assert interval(Side(np.full(60, 5.0) + np.arange(60) / 60, np.ones(60))).p_value < 0.01

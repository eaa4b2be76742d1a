"""Resampling: weights of blocks and clusters, and statistics of weighted rows against the rows written out."""

import math

import numpy as np
import pytest
from po_dynamics.dynamics.observables import resampling as r
from scipy.stats import spearmanr


def test_a_weighted_correlation_is_that_of_the_rows_written_out():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 12, 40).astype(float), rng.normal(size=40)  # x has ties
    y[5] = y[6]
    weights = rng.multinomial(40, np.full(40, 1 / 40), size=25).astype(float)
    found = r.rank_correlation(r.Ranked(x), r.Ranked(y), weights)
    rows = [np.repeat(np.arange(40), weight.astype(int)) for weight in weights]
    np.testing.assert_allclose(found, [spearmanr(x[row], y[row]).statistic for row in rows], rtol=1e-10)


def test_a_constant_side_has_no_correlation():
    rows = np.ones((1, 4))
    assert math.isnan(r.rank_correlation(r.Ranked(np.ones(4)), r.Ranked(np.arange(4.0)), rows)[0])


def test_blocks_are_of_neighbours_of_one_run():
    runs = np.repeat([3, 7], 8)
    weights = r.block_weights(runs, 200, seed=0)
    assert (weights.sum(axis=1) == 16).all()
    of_runs = weights.reshape(200, 2, 8)
    drawn = of_runs.sum(axis=2) / 8
    assert set(np.unique(drawn)) == {0, 1, 2}  # how often each run was drawn
    # Blocks of two neighbours: what even places get, odd places get.
    np.testing.assert_array_equal(of_runs[:, :, ::2].sum(axis=2), of_runs[:, :, 1::2].sum(axis=2))
    assert len(np.unique(weights, axis=0)) > 150


def test_blocks_widen_the_interval_of_rows_that_hang_together():
    """The mean of overlapping averages: rows resampled one by one pretend to know twice as much as there is."""
    of_blocks, of_rows = [], []
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(size=201)
        rows = (noise[1:] + noise[:-1]) / 2
        of_blocks.append((r.block_weights(np.zeros(200), 200, seed) @ rows / 200).var())
        of_rows.append((r.cluster_weights(200, 200, seed) @ rows / 200).var())
    assert np.mean(of_rows) == pytest.approx(0.5 / 200, rel=0.15)
    assert np.mean(of_blocks) == pytest.approx((1 + 5 / 6) * 0.5 / 200, rel=0.15)  # blocks of 6; the truth is 1 / 200


def test_an_interval_needs_half_of_the_resamples():
    assert r.percentiles(np.arange(1001.0)) == pytest.approx((25, 975))
    assert all(math.isnan(end) for end in r.percentiles(np.array([1.0, math.nan, math.nan])))

"""The length-controlled rate against alpaca-eval's own fit, a bootstrap, and judges whose love of length is known."""

import logging

import numpy as np
import pandas as pd
import pytest
from po_dynamics.evaluation import alpaca
from po_dynamics.evaluation.reliability.length_control import fit, length_controlled
from scipy import special


def judged(random, n=805, quality=0.3, effect=1.0, longer=40.0, deviation=120.0, soft=True):
    """Outcomes of a judge whose log-odds for the candidate are quality + effect · tanh(Δ / sd(Δ)), and Δ."""
    differences = random.normal(longer, deviation, n).round()
    chance = special.expit(quality + effect * np.tanh(differences / differences.std(ddof=1)))
    if soft:  # as a judge that gives probabilities near 0 or 1
        return special.expit(8 * (chance - random.random(n))), differences
    return (random.random(n) < chance).astype(float), differences


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """alpaca-eval's fit; its file of difficulties, which is on a hub only, is zeros, which the minimal fit ignores."""
    with alpaca.alpaca_eval():
        from alpaca_eval.metrics import glm_winrate
    path = tmp_path_factory.mktemp("hub") / "gamed.csv"
    pd.DataFrame({"model": "none", "index": range(805), "instruction_difficulty": 0.0}).to_csv(path, index=False)
    patch = pytest.MonkeyPatch()
    patch.setattr(glm_winrate, "hf_hub_download", lambda **_: str(path))
    yield glm_winrate
    patch.undo()


def annotations(outcomes, differences):
    shorter = (400 - np.minimum(differences, 0)).astype(int)
    lengths = (shorter + differences).astype(int)
    return pd.DataFrame(
        {"preference": outcomes + 1, "output_1": ["x" * n for n in shorter], "output_2": ["y" * n for n in lengths]}
        | {"generator_1": "base", "generator_2": "candidate", "annotator": "j", "instruction": "i"}
    )


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("quality", "effect", "soft"), [(0.3, 1.0, True), (-0.6, 0.4, False), (0.0, -0.8, True)])
def test_it_is_alpaca_evals_minimal_fit(package, quality, effect, soft):
    """Exactly, up to its solver, without its penalty; near it with the one it chooses, which pulls rates to 50 %."""
    outcomes, differences = judged(np.random.default_rng(1), quality=quality, effect=effect, soft=soft)
    ours = length_controlled(outcomes, differences)
    arguments = {"save_weights_dir": None, "is_add_glm_preference_inplace": False}
    minimal = package.GLM_INFO["length_controlled_minimal"]
    unpenalised = minimal | {"kwargs": {"n_splits": 0, "C": 1e9, "tol": 1e-8, "max_iter": 10_000}}
    table = annotations(outcomes, differences)
    logging.disable(logging.WARNING)
    for info, tolerance in ((unpenalised, 1e-3), (minimal, 0.5)):
        theirs = package.get_length_controlled_winrate(table, glm_info=info, **arguments)
        assert 100 * ours.rate == pytest.approx(theirs["length_controlled_winrate"], abs=tolerance)
        assert 100 * outcomes.mean() == pytest.approx(theirs["win_rate"], abs=1e-9)
    logging.disable(logging.NOTSET)


def test_the_interval_holds_the_rate_and_is_that_of_a_bootstrap():
    truth, hits = special.expit(0.3), 0
    for seed in range(300):
        found = length_controlled(*judged(np.random.default_rng(seed), n=300, soft=False))
        hits += found.low <= truth <= found.high
    assert 0.92 <= hits / 300 <= 0.98
    random = np.random.default_rng(5)
    outcomes, differences = judged(random)
    drawn = random.integers(0, 805, (400, 805))
    rates = [length_controlled(outcomes[rows], differences[rows]).rate for rows in drawn]
    found = length_controlled(outcomes, differences)
    assert found.high - found.low == pytest.approx(np.diff(np.quantile(rates, [0.025, 0.975]))[0], rel=0.12)


def test_padding_moves_the_raw_rate_alone():
    """The same answers, each padded by some words, before a judge that likes length."""
    random = np.random.default_rng(2)
    differences = random.normal(0, 60, 20_000).round()
    padded = differences + random.uniform(0, 120, 20_000).round()
    noise = random.random(20_000)
    raw, controlled = [], []
    for lengths in (differences, padded):
        outcomes = (noise < special.expit(1.2 * np.tanh(lengths / padded.std(ddof=1)))).astype(float)
        raw.append(outcomes.mean())
        controlled.append(length_controlled(outcomes, lengths).rate)
    assert raw[1] - raw[0] > 0.1
    assert abs(controlled[1] - controlled[0]) < 0.02
    assert controlled[0] == pytest.approx(0.5, abs=0.02)


def test_equal_lengths_leave_the_raw_rate():
    outcomes = np.array([1.0, 1.0, 0.5, 0.0, 1.0])
    for difference in (0.0, 7.0):
        found = length_controlled(outcomes, np.full(5, difference))
        assert (found.rate, found.effect) == (pytest.approx(0.7), 0)
        assert found.low < 0.7 < found.high
        assert found.extrapolates == (difference != 0)  # always longer: none shows what equal length does
    assert length_controlled(np.full(9, 0.5), np.zeros(9))[:4] == (0.5, 0.5, 0.5, 0)  # identical answers


def test_it_says_where_it_extrapolates():
    random = np.random.default_rng(3)
    differences = random.normal(0, 50, 400)
    for rate, expected in ((0.2, True), (0.3, False), (0.7, False), (0.8, True)):
        outcomes = (np.arange(400) < 400 * rate).astype(float)
        assert length_controlled(outcomes, random.permutation(differences)).extrapolates == expected


def test_where_there_is_nothing_to_fit():
    differences = np.arange(-10.0, 10.0)
    won = length_controlled(np.ones(20), differences)
    assert won[:3] == (1, pytest.approx(0.025 ** (1 / 20)), 1)
    longer_wins = length_controlled((differences > 0).astype(float), differences)
    assert np.isnan(longer_wins[:4]).all()
    assert np.isnan(length_controlled(np.full(3, np.nan), np.arange(3.0))[:4]).all()
    gaps = np.array([1.0, np.nan, 0.0, 1.0, 0.0, 1.0])
    spread = np.array([3.0, 99.0, 1.0, -2.0, 2.0, 0.0])
    assert length_controlled(gaps, spread) == length_controlled(gaps[~np.isnan(gaps)], spread[~np.isnan(gaps)])


def test_the_fit_is_the_maximum_of_the_likelihood():
    random = np.random.default_rng(4)
    outcomes, design = random.random(50), random.normal(size=(50, 3))
    weights, covariance = fit(outcomes, design)
    assert design.T @ (outcomes - special.expit(design @ weights)) == pytest.approx(0, abs=1e-9)
    assert np.linalg.eigvalsh(covariance).min() > 0

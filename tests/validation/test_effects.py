"""Left-out components against predictions: signs, intervals, momentum, agreement by blocks of training."""

import numpy as np
import pandas as pd
import pytest
from po_dynamics.validation.effects import agreement, effects, momentum
from po_dynamics.validation.statistics import mean_difference, spearman
from scipy.stats import spearmanr

COMPONENTS = {"POS": 0.9, "NEG": -0.4, "TOP": 0.3, "MID": 0.15, "BOT": 0.05}
KEYS = {"model": "m", "run": "dpo", "seed": 0, "step": 4}


def folder_of(path, shifts, rng):
    """What `retrain_without` writes: the NLL of 50 responses, shifted by what is missing; preferences; rates."""
    base, arms = rng.normal(20, 5, size=50), {"TOT": 0.0, **shifts}
    path.mkdir()
    losses, judged = [], []
    for arm, shift in arms.items():
        losses += [{"arm": arm, "id": str(i), "nll": base[i] + shift + 0.01 * rng.normal()} for i in range(50)]
        verdict = {"arm": arm, "preference": 0.5 - shift / 4, "preference_swapped": 0.5}
        judged += [{**verdict, "id": str(i)} for i in range(30)]
    rates = [{"arm": arm, "step": t, "learning_rate": 0.01} for arm in arms for t in (5, 6, 7)]
    for name, rows in (("losses", losses), ("judged", judged), ("rates", rates)):
        pd.DataFrame(rows).to_parquet(path / f"{name}.parquet")
    return path


def dynamics(scale=1.0):
    """G of both ends of the interval; also rows that must not be read."""
    rows = []
    for step, factor in ((4, 0.5), (7, 1.5), (0, 100)):
        for component, g in COMPONENTS.items():
            row = {**KEYS, "step": step, "final_set": "heldout", "component": component, "segment": "all"}
            row |= {"filtered": False, "G": factor * g * scale, "G_adamw": 10 * factor * g * scale}
            rows += [row, {**row, "filtered": True, "G": 50}, {**row, "segment": "top", "G": 50}]
            rows += [{**row, "seed": 1, "G": 50}, {**row, "final_set": "train", "G": 50}]
    return pd.DataFrame(rows)


def test_effects_are_paired_differences_beside_eta_times_g(tmp_path):
    shifts = {component: 0.06 * g for component, g in COMPONENTS.items()}
    folder = folder_of(tmp_path / "without", shifts, np.random.default_rng(0))
    table = effects(folder, KEYS, 7, 2, dynamics()).set_index("component")
    assert list(table.index) == list(COMPONENTS)
    for component, g in COMPONENTS.items():
        row = table.loc[component]
        assert row["change"] == pytest.approx(shifts[component], abs=0.01)
        assert row["change_low"] < row["change"] < row["change_high"] < row["change_low"] + 0.02  # paired
        assert row["win_change"] == pytest.approx(-12.5 * shifts[component])
        assert row["predicted"] == pytest.approx(0.01 * 6 * g)
        assert row["predicted_adamw"] == pytest.approx(0.01 * momentum(6, 8).sum() * 10 * g)


def test_momentum_is_adamw_s_after_a_start_without_it():
    m, applied = 0.0, []
    for t in range(1, 8):
        m = 0.9 * m + 0.1
        applied.append(m / (1 - 0.9 ** (20 + t)))
    np.testing.assert_allclose(momentum(7, 20), applied)


def table_of(rng, noise, sign=1.0):
    rows = []
    for seed in range(3):
        for step in (4, 7):
            for component, of_component in COMPONENTS.items():
                g = of_component * (1 + seed / 10 + step / 100)
                value = sign * g + noise * rng.normal()
                row = {**KEYS, "seed": seed, "step": step, "component": component, "predicted": g, "predicted_adamw": g}
                row |= {"change": value, "change_low": value - 0.01, "change_high": value + 0.01}
                rows.append({**row, "win_change": -value, "win_change_low": -value - 9, "win_change_high": -value + 9})
    return pd.DataFrame(rows)


def test_agreement_of_what_agrees_and_of_what_does_not():
    rng = np.random.default_rng(0)
    right = agreement(table_of(rng, 1e-6)).set_index(["outcome", "predictor"])
    assert right.loc[("change", "predicted"), ["rho", "signs", "slope"]].tolist() == pytest.approx([1, 1, 1], abs=0.01)
    assert right.loc[("win_change", "predicted"), "rho"] == pytest.approx(1, abs=0.01)
    assert right.loc[("win_change", "predicted"), "n_resolved"] == 0
    wrong = agreement(table_of(rng, 1e-6, sign=-1.0)).set_index(["outcome", "predictor"])
    assert wrong.loc[("change", "predicted"), ["rho", "signs", "slope"]].tolist() == pytest.approx(
        [-1, 0, -1], abs=0.01
    )
    noisy = agreement(table_of(rng, 3.0)).set_index(["outcome", "predictor"]).loc[("change", "predicted")]
    assert noisy["low"] < noisy["rho"] < noisy["high"]
    assert noisy["high"] - noisy["low"] > 0.2


def test_two_intervals_of_training_give_no_interval():
    table = table_of(np.random.default_rng(0), 0.5).query("seed == 0")
    found = agreement(table).set_index(["outcome", "predictor"]).loc[("change", "predicted")]
    assert found[["rho", "slope"]].notna().all()
    assert found[["low", "high", "slope_low", "slope_high"]].isna().all()


def test_a_predictor_that_was_not_measured_is_left_out():
    table = table_of(np.random.default_rng(0), 0.1).assign(predicted_adamw=np.nan)
    assert set(agreement(table)["predictor"]) == {"predicted"}


def test_spearman_is_scipy_s_row_by_row():
    rng = np.random.default_rng(0)
    x, y = rng.integers(5, size=(2, 30, 12)).astype(float)  # with ties
    np.testing.assert_allclose(spearman(x, y), [spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)])
    assert np.isnan(spearman(np.ones((1, 4)), rng.normal(size=(1, 4))))[0]


def test_the_interval_of_a_mean_difference_covers_it():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        first = rng.normal(size=60)
        estimate = mean_difference(first, first + rng.normal(0.3, 1, size=60), seed)
        hits += estimate.low <= 0.3 <= estimate.high
    assert 0.89 <= hits / 200 <= 0.99

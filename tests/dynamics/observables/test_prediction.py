"""The predictive check: sums of learning rates, steps really made, baselines, what it is worth."""

import math

import numpy as np
import pandas as pd
import pytest
from po_dynamics.dynamics.observables import prediction as p
from po_dynamics.dynamics.observables.trainings import Rates
from po_dynamics.errors import InputError


def keys(step=0, seed=0):
    return {"model": "m", "run": "dpo", "seed": seed, "step": step, "final_set": "heldout"}


def curve(rates):
    return pd.DataFrame({"step": range(1, len(rates) + 1), "learning_rate": rates})


# ------------------------------------------------------------------------------------------------------ learning rates


def test_rates_are_summed_over_optimizer_steps_with_values_linear_between():
    rates = [0.0, 0.1, 0.2, 0.4, 0.3, 0.7]
    weights = Rates.of(curve(rates)).between(1, 5)
    g = np.linspace(3, 7, 5)  # at steps 1 … 5; row k starts from the model after k − 1
    assert weights.earlier * g[0] + weights.later * g[-1] == pytest.approx(np.dot(rates[1:5], g[:4]))
    assert sum(weights) == pytest.approx(1.0)


def test_an_update_of_ppo_is_several_steps_and_none_while_the_critic_warms_up():
    rates = Rates.of(curve([1.0, 0.5, 0.25, 0.25]), steps_per_row=4, idle=2)
    assert sum(rates.between(0, 4)) == 2
    assert rates.steps(0, 4) == 8


def test_a_curve_of_another_run_is_refused():
    with pytest.raises(InputError, match="no learning rate of step 4, between the probed checkpoints 2 and 5"):
        Rates.of(curve([0.1, 0.1, 0.1])).between(2, 5)


# ---------------------------------------------------------------------------------------------- predicted and happened

STEPS = (0, 10, 30, 60, 100, 150, 210, 280, 360)


def tables(g, seed=0, rate=0.01, g_adamw=None):
    """dynamics and losses in which the NLL of D′ falls by exactly Σ η·G, G linear between the steps."""
    g = np.asarray(g, dtype=float)
    between = np.interp(np.arange(STEPS[-1]), STEPS, g)
    loss = 20 - rate * np.array([between[:step].sum() for step in STEPS])
    adamw = np.full(len(g), math.nan) if g_adamw is None else g_adamw
    rows = [
        {**keys(step, seed), "component": "TOT", "segment": "all", "filtered": False, "G": a, "G_adamw": b}
        for step, a, b in zip(STEPS, g, adamw, strict=True)
    ]
    losses = [{**keys(step, seed), "final_loss": x} for step, x in zip(STEPS, loss, strict=True)]
    return pd.DataFrame(rows), pd.DataFrame(losses)


def changes(parts, rate=0.01):
    rates = {("m", "dpo", seed): Rates.of(curve([rate] * STEPS[-1])) for seed in range(len(parts))}
    return p.changes(*(pd.concat(tables, ignore_index=True) for tables in zip(*parts, strict=True)), rates)


def test_a_change_that_is_as_predicted_lies_on_the_diagonal():
    rng = np.random.default_rng(0)
    g = rng.normal(size=len(STEPS))
    adamw = np.concatenate([[math.nan], g[1:] / 2])  # as at step 0, which has no optimizer state
    table = changes([tables(g, g_adamw=adamw)])
    assert table["next_step"].tolist() == list(STEPS[1:])
    assert table["optimizer_steps"].tolist() == list(np.diff(STEPS))
    np.testing.assert_allclose(table["change"], table["predicted"], rtol=1e-9)
    np.testing.assert_allclose(table["rate"], 0.01 * np.diff(STEPS))
    tests = p.assess(table).set_index(["predictor", "statistic"])
    assert tests.loc[("predicted", "rho"), "value"] == pytest.approx(1)
    assert tests.loc[("predicted", "slope"), ["value", "low", "high"]].tolist() == pytest.approx([1, 1, 1])
    assert tests.loc[("predicted_adamw", "slope"), "value"] == pytest.approx(2)
    assert tests.loc["predicted", "n"].eq(8).all()
    assert tests.loc["predicted_adamw", "n"].eq(7).all()
    (line,) = p.without_state(table)
    assert line.startswith("m/dpo seed 0, heldout: no prediction of AdamW's steps from step 0 on")


def test_what_only_follows_the_step_number_does_not_beat_it():
    """G and the change both die out with time, each with noise of its own: a high ρ that says nothing."""
    rng = np.random.default_rng(2)
    fading = np.exp(-np.arange(len(STEPS)) / 3)
    parts = [tables(fading * 5, seed) for seed in range(3)]
    table = changes(parts)
    table["change"] = -np.exp(-table["step"] / 80) * (1 + 0.02 * rng.normal(size=len(table)))
    table["predicted"] = -np.exp(-table["step"] / 80) * (1 + 0.02 * rng.normal(size=len(table)))
    tests = p.assess(table).query("predictor == 'predicted'").set_index("statistic")
    assert tests.loc["rho", "value"] > 0.9
    assert tests.loc["rho_step", "value"] > 0.9
    assert tests.loc["over_step", "low"] < 0.02
    assert tests.loc["partial_step", "low"] < 0 < tests.loc["partial_step", "high"]


def test_what_follows_g_beats_the_step_number():
    rng = np.random.default_rng(3)
    tests = p.assess(changes([tables(rng.normal(size=len(STEPS)), seed) for seed in range(5)]))
    tests = tests.query("predictor == 'predicted'").set_index("statistic")
    assert tests.loc["over_step", "low"] > 0
    assert tests.loc["over_rate", "low"] > 0
    assert tests.loc["partial_step", "value"] == pytest.approx(1)
    assert tests["seeds"].eq(5).all()


def test_predictions_that_are_shuffled_are_worth_nothing():
    rng = np.random.default_rng(4)
    table = changes([tables(rng.normal(size=len(STEPS)), seed) for seed in range(40)])
    table["predicted"] = rng.permutation(table["predicted"])
    tests = p.assess(table, draws=300).query("predictor == 'predicted'").set_index("statistic")
    for statistic in ("rho", "slope"):
        assert tests.loc[statistic, "low"] < 0 < tests.loc[statistic, "high"]
        assert abs(tests.loc[statistic, "value"]) < 0.25


def test_two_pairs_are_too_few():
    table = changes([tables(np.ones(len(STEPS)))]).head(2)
    assert p.assess(table)["value"].isna().all()

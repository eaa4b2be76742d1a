"""The linear datamodelling score where the truth is known: a linear model, shuffled scores, weights of checkpoints."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from po_dynamics.dynamics.alignment import Probe
from po_dynamics.dynamics.tables import Tables
from po_dynamics.errors import InputError
from po_dynamics.validation.datamodels import (
    SCORES,
    Halves,
    datamodelling_scores,
    pair_scores,
    predictions,
    step_weights,
)
from po_dynamics.validation.halves import half

RATES = pd.Series([0.1, 0.2, 0.3, 0.4], index=[1, 2, 3, 4])
N = 60


def probes(rng, steps=(0, 2, 4), adamw=True):
    """Probes of N pairs, two tokens a response, with random coefficients and scores; no AdamW's at step 0."""
    pairs = np.repeat([f"p{i}" for i in range(N)], 4)
    found = []
    for step in steps:
        scores = pd.DataFrame({"sample_id": pairs, "role": ["chosen", "chosen", "rejected", "rejected"] * N})
        scores["coefficient"], scores["score"] = rng.normal(size=(2, len(pairs)))
        scores["score_adamw"] = rng.normal(size=len(pairs)) if adamw and step else np.nan
        final = pd.DataFrame({"sample_id": ["0"], "role": ["final"], "score": [np.nan]})
        empty = dict.fromkeys((field.name for field in dataclasses.fields(Tables)), pd.DataFrame())
        tables = Tables(**{**empty, "scores": pd.concat([scores, final]), "metadata": {}})
        found.append(Probe({"step": step}, tables))
    return found


def trained(scores, name, rng, subsets=40, noise=0.0):
    """Trainings whose NLL is exactly linear in the pairs of their half, for each of 7 responses with an offset."""
    ids = scores.index.to_numpy()
    members, losses = [], []
    for subset in range(subsets):
        chosen = ids[half(len(ids), subset, seed=3)]
        members += [{"arm": str(subset), "pair": pair} for pair in chosen]
        value = 9.0 + 2 * scores.loc[chosen, name].sum() + noise * rng.normal()
        losses += [{"arm": str(subset), "id": k, "nll": value + k - 3} for k in range(7)]
    return Halves(pd.DataFrame(losses), pd.DataFrame(members))


@pytest.mark.parametrize("name", SCORES)
def test_a_linear_model_is_predicted_exactly(name):
    rng = np.random.default_rng(0)
    scores = pair_scores(probes(rng), RATES)
    halves = trained(scores, name, rng)
    table = predictions(scores, halves)
    np.testing.assert_allclose(table["nll"] - 9.0, table[name], atol=1e-10)
    found = datamodelling_scores(scores, halves).set_index("score").loc[name]
    assert found[["rho", "low", "high", "low_responses", "high_responses"]].tolist() == pytest.approx([1] * 5)
    assert (found["n"], found["n_responses"]) == (40, 7)


def test_shuffled_scores_predict_nothing():
    rng = np.random.default_rng(1)
    scores = pair_scores(probes(rng), RATES)
    halves = trained(scores, "plain", rng, subsets=400)
    shuffled = scores.set_axis(rng.permutation(scores.index)).loc[scores.index].rename_axis("pair")
    found = datamodelling_scores(shuffled, halves).set_index("score").loc["plain"]
    overlap = np.corrcoef(scores["plain"], shuffled["plain"])[0, 1]  # what chance leaves of the truth
    assert found["rho"] == pytest.approx(overlap, abs=0.15)
    assert abs(found["rho"]) < 0.3
    assert 0 < found["high"] - found["low"] < 0.25


def test_an_interval_narrows_with_the_noise():
    rng = np.random.default_rng(2)
    scores = pair_scores(probes(rng), RATES)
    widths = []
    for noise in (0.1, 2.0):
        found = datamodelling_scores(scores, trained(scores, "plain", rng, noise=noise)).set_index("score").loc["plain"]
        assert found["low"] <= found["rho"] <= found["high"]
        widths.append(found["high"] - found["low"])
    assert widths[0] < widths[1]


def test_scores_are_the_shares_of_g_times_the_rates():
    given = probes(np.random.default_rng(0))
    scores = pair_scores(given, RATES)
    shares = []
    for probe in given:
        rows = probe.tables.scores.query("sample_id == 'p5'")
        shares.append(-(rows["coefficient"] * rows["score"]).sum())
    assert scores.loc["p5", "plain"] == pytest.approx(-(0.15 * shares[0] + 0.5 * shares[1] + 0.35 * shares[2]))
    assert scores.loc["p5", "last"] == pytest.approx(-1.0 * shares[2])


def test_weights_of_checkpoints():
    np.testing.assert_allclose(step_weights([0, 2, 4], RATES), [0.15, 0.5, 0.35])
    np.testing.assert_allclose(step_weights([2, 3], RATES), [0.1 + 0.2 + 0.15, 0.15 + 0.4])
    np.testing.assert_allclose(step_weights([4], RATES), [1.0])
    np.testing.assert_allclose(step_weights([1], RATES), [1.0])


def test_without_optimizer_state_there_is_no_score_of_adamw():
    rng = np.random.default_rng(0)
    scores = pair_scores(probes(rng, adamw=False), RATES)
    assert datamodelling_scores(scores, trained(scores, "plain", rng))["score"].tolist() == ["plain", "last", "lengths"]


def test_the_baseline_is_the_difference_of_lengths():
    given = probes(np.random.default_rng(0))
    scores = given[0].tables.scores
    given[0].tables.scores = scores[~((scores["sample_id"] == "p5") & (scores["role"] == "rejected"))]
    found = pair_scores(given, RATES)["lengths"]
    assert (found["p5"], found["p6"]) == (2, 0)


def test_a_pair_that_was_not_probed_is_named():
    rng = np.random.default_rng(0)
    scores = pair_scores(probes(rng), RATES)
    with pytest.raises(InputError, match=r"1 pairs of the halves have no score, such as p7; set probe.samples"):
        predictions(scores.drop(index="p7"), trained(scores, "plain", rng))


def test_halves_are_halves_and_do_not_depend_on_each_other():
    halves = [half(11, subset, seed=0) for subset in range(200)]
    assert {len(rows) for rows in halves} == {5}
    assert len({tuple(rows) for rows in halves}) > 150
    counts = np.bincount(np.concatenate(halves), minlength=11) / len(halves)
    assert np.abs(counts - 5 / 11).max() < 0.12
    np.testing.assert_array_equal(half(11, 7, seed=0), halves[7])
    assert not np.array_equal(half(11, 7, seed=1), halves[7])

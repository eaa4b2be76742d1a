"""Token by token: steps really made on a small model, shuffled predictions, components, clusters, errors."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import recompute
import torch
from po_dynamics.dynamics.alignment import Probe, tabulate
from po_dynamics.dynamics.observables import prediction
from po_dynamics.dynamics.observables import token_prediction as t
from po_dynamics.dynamics.observables.trainings import Rates
from po_dynamics.errors import InputError
from po_dynamics.objectives.registry import bind
from po_dynamics.probe.passes import Options, probe, with_reference
from probe_samples import final, pairs, rollouts, tiny

RATE = 1e-7
RATES = {("m", "dpo", 0): Rates.of(pd.DataFrame({"step": [1], "learning_rate": [RATE]}))}
OBJECTIVE = bind("dpo", {"beta": 0.1})


def keys(step, run="dpo"):
    return {"model": "m", "run": run, "seed": 0, "step": step, "final_set": "heldout"}


def model():
    return tiny(dtype=torch.float64)


@pytest.fixture(scope="module")
def made():
    """Probes before and after a small step on D, of gradient descent and of a preconditioned one."""
    torch.manual_seed(3)
    scales = {name: torch.rand_like(p) + 0.1 for name, p in model().named_parameters()}
    train = with_reference(pairs(12), tiny(seed=1, dtype=torch.float64))
    options = Options(scales=scales, audits=0)
    start = model()
    before = probe(start, train, final(20), OBJECTIVE, options=options)
    loss = 0
    for sample in train:
        rows = before.scores.query("sample_id == @sample.sample_id and role == @sample.role")
        logp = recompute.log_probs(start, sample.prompt_ids, sample.response_ids)
        loss = loss - (torch.from_numpy(rows["coefficient"].to_numpy(copy=True)) * logp).sum()
    gradient = torch.autograd.grad(loss, list(start.parameters()))
    found = {}
    for name in ("predicted", "predicted_adamw"):
        moved = model()
        with torch.no_grad():
            for (own, parameter), g in zip(moved.named_parameters(), gradient, strict=True):
                parameter -= RATE * (g / scales[own] if name == "predicted_adamw" else g)
        after = probe(moved, train, final(20), OBJECTIVE, options=options)
        found[name] = [Probe(keys(0), before), Probe(keys(1), after)]
    return found


def whole(table, side, component="TOT"):
    rows = table[table["step"].isna() & (table["set"] == side) & (table["component"] == component)]
    return rows.set_index(["predictor", "statistic"])


@pytest.mark.parametrize("name", ["predicted", "predicted_adamw"])
def test_a_small_step_goes_where_it_is_predicted_to(made, name):
    probes = made[name]
    table = t.token_prediction(t.intervals(probes, RATES), draws=50)
    sides = {"predicted": ["final"], "predicted_adamw": ["final", "train"]}[name]
    for side in sides:
        rows = whole(table, side).loc[name]
        for statistic in ("slope_origin", "slope"):
            assert rows.loc[statistic, ["value", "low", "high"]].tolist() == pytest.approx([1, 1, 1], abs=1e-3)
        assert rows.loc["rho", "low"] > 0.999
        assert rows.loc["signs_right", "value"] > 0.99
        assert rows.loc["signs_over", "low"] > 0
    losses = pd.concat(map(prediction.final_losses, probes), ignore_index=True)
    change = prediction.changes(tabulate(probes), losses, RATES)
    assert change["change"].item() / change[name].item() == pytest.approx(1, abs=1e-3)


def test_shuffled_predictions_say_nothing(made):
    (tokens,) = [part for part in t.intervals(made["predicted"], RATES) if part.set == "final"]
    rng = np.random.default_rng(0)
    parts = []
    for i in range(20):  # enough tokens for a statement
        table = tokens.table.assign(predicted=rng.permutation(tokens.table["predicted"]))
        parts.append(replace(tokens, table=table.assign(sample_id=table["sample_id"] + f"-{i}")))
    rows = whole(t.token_prediction(parts, draws=100), "final").loc["predicted"]
    for statistic in ("slope_origin", "slope", "rho"):
        assert abs(rows.loc[statistic, "value"]) < 0.1
        assert rows.loc[statistic, "low"] < 0.02
        assert rows.loc[statistic, "high"] > -0.02
    assert rows.loc["signs_over", "high"] < 0.05


def test_every_component_of_d_and_all_tokens_of_both_sides(made):
    table = t.token_prediction(t.intervals(made["predicted_adamw"], RATES), draws=20)
    scores, drifts = made["predicted_adamw"][0].tables.scores, made["predicted_adamw"][0].tables.drifts
    counts = table[table["step"].isna() & (table["statistic"] == "rho") & (table["predictor"] == "predicted_adamw")]
    n = counts.set_index(["set", "component"])["n_tokens"]
    assert n["final", "TOT"] == len(drifts)
    assert n["train", "TOT"] == len(scores) == n["train", "POS"] + n["train", "NEG"]
    assert n["train"][["TOP", "MID", "BOT"]].sum() == len(scores)
    assert whole(table, "train").loc["predicted_adamw", "n_samples"].eq(12).all()
    assert "predicted" not in table.loc[table["set"] == "train", "predictor"].tolist()
    alone = table[table["step"].notna()]
    assert alone[["seed", "step", "next_step"]].drop_duplicates().to_numpy().tolist() == [[0, 0, 1]]


def test_groups_by_weight_are_left_out_where_all_weights_are_equal(made):
    probes = [
        p._replace(tables=replace(p.tables, scores=p.tables.scores.assign(weight=0.05))) for p in made["predicted"]
    ]
    components = {name for part in t.intervals(probes, RATES) if part.set == "train" for name in part.masks}
    assert components == {"TOT", "POS", "NEG"}


def test_intervals_are_over_responses_not_tokens(made):
    """Tokens that move alike within a response: the interval must be about as wide as with one token each."""
    (tokens,) = [part for part in t.intervals(made["predicted"], RATES) if part.set == "final"]
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 60))
    y = y + x
    ids = [f"r{i}" for i in range(60)]

    def width(copies):
        table = pd.DataFrame({"sample_id": np.repeat(ids, copies), "realised": np.repeat(y, copies)})
        table = table.assign(predicted=np.repeat(x, copies), predicted_adamw=np.nan)
        part = replace(tokens, table=table, masks={"TOT": np.ones(len(table), dtype=bool)})
        row = whole(t.token_prediction([part], draws=300), "final").loc[("predicted", "slope")]
        return row["high"] - row["low"]

    assert width(30) == pytest.approx(width(1), rel=1e-6)
    assert width(1) > 0.2


def test_bins_hold_every_token_in_order_of_its_prediction(made):
    bins = t.token_bins(t.intervals(made["predicted"], RATES), bins=7)
    of = bins.query("set == 'final' and predictor == 'predicted'")
    assert of["n"].sum() == len(made["predicted"][0].tables.drifts)
    assert of["predicted"].is_monotonic_increasing
    np.testing.assert_allclose(of["median"], of["predicted"], atol=0.02 * of["predicted"].abs().max())
    assert (of["q25"] <= of["median"]).all()
    assert (of["median"] <= of["q75"]).all()


def test_online_only_the_final_responses_are_met_again():
    tables = probe(tiny(), rollouts(12), final(6), bind("ppo", {}), options=Options(audits=0))
    rates = {("m", "ppo", 0): RATES["m", "dpo", 0]}
    parts = list(t.intervals([Probe(keys(0, "ppo"), tables), Probe(keys(1, "ppo"), tables)], rates))
    assert [part.set for part in parts] == ["final"]
    assert parts[0].table["realised"].eq(0).all()


def test_probes_of_other_samples_are_refused(made):
    before, after = made["predicted"]
    other = after._replace(tables=replace(after.tables, drifts=after.tables.drifts.iloc[:-1]))
    with pytest.raises(InputError, match="m/dpo seed 0: the probes of steps 0 and 1 are of other samples"):
        list(t.intervals([before, other], RATES))

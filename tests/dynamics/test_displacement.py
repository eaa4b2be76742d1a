"""Why both fall: the condition against steps that are really made, log-probs, and whether the one says the other."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from po_dynamics.dynamics.alignment import Probe
from po_dynamics.dynamics.observables import displacement as d
from po_dynamics.errors import InputError
from po_dynamics.models.batches import collate, token_logps
from po_dynamics.objectives.registry import bind
from po_dynamics.probe.passes import Options, probe, with_reference
from po_dynamics.probe.samples import Sample
from probe_samples import final, pairs, rollouts, tiny
from scipy.stats import mannwhitneyu

BETA = {"beta": 0.1}


def keys(step=0, seed=0):
    return {"model": "m", "run": "dpo", "seed": seed, "step": step, "final_set": "heldout"}


def probed(model, train, **options):
    return probe(model, train, final(6), bind("dpo", BETA), options=Options(audits=0, **options))


@pytest.fixture(scope="module")
def tables():
    return probed(tiny(), with_reference(pairs(24, batch_size=3), tiny(seed=1)))


def later(tables, step, change, seed=0):
    """A later checkpoint at which log π of every token of a role and batch has changed by `change[role][batch]`."""
    scores = tables.scores
    by_row = [change[role][batch] for role, batch in zip(scores["role"], scores["batch"], strict=True)]
    return Probe(keys(step, seed), replace(tables, scores=scores.assign(logprob=scores["logprob"] + by_row)))


def rows(table, quantity):
    return table[table["quantity"] == quantity].set_index("step")


# ------------------------------------------------------------------------------------------ the condition, in truth

LONG, SHORT = [5, 6, 7, 5, 6, 7], [5, 6]


@pytest.mark.parametrize(
    ("chosen", "rejected", "lowers", "raises"),
    [(SHORT, LONG, True, False), (LONG, SHORT, False, True), ([5, 6, 7], [9, 8, 4], False, False)],
)
def test_the_condition_says_what_a_step_on_the_mini_batch_does(chosen, rejected, lowers, raises):
    """A small step of gradient descent, made: its change is η(‖g⁺‖² − ⟨g⁺, g⁻⟩) and η(⟨g⁺, g⁻⟩ − ‖g⁻‖²)."""
    samples = [Sample("a", "train", 0, role, [3, 4], ids) for role, ids in (("chosen", chosen), ("rejected", rejected))]
    model = tiny(dtype=torch.float64)
    train = with_reference(samples, tiny(seed=1, dtype=torch.float64))
    before = probed(model, train)
    rate = 1e-6
    descend(model, before, rate)
    after = probed(model, train)
    row = d.entanglement(Probe(keys(), before)).iloc[0]
    change = (before.scores["coefficient"] * (after.scores["logprob"] - before.scores["logprob"])).groupby(
        before.scores["role"]
    )
    assert change.sum()["chosen"] == pytest.approx(rate * (row["positive_norm"] ** 2 - row["inner"]), rel=1e-3)
    assert -change.sum()["rejected"] == pytest.approx(rate * (row["inner"] - row["negative_norm"] ** 2), rel=1e-3)
    table = d.displacement([Probe(keys(0), before), Probe(keys(1), after)])
    shares = {name: rows(table, name).loc[0, "value"] for name in (*d.HOLDS.values(), *d.HAPPENED.values())}
    assert (shares["lowers_chosen"], shares["raises_rejected"]) == (lowers, raises)
    assert (shares["chosen_fell"], shares["rejected_rose"]) == (lowers, raises)


def descend(model, tables, rate):
    """θ − η∇L with L = −Σ c log π, c as stored."""
    rows = tables.samples.query("set == 'train'")
    batch = collate(rows["prompt_ids"].map(list).tolist(), rows["response_ids"].map(list).tolist(), 0)
    logps_BT = token_logps(model, batch)
    c = torch.from_numpy(tables.scores["coefficient"].to_numpy().copy())
    gradients = torch.autograd.grad(-(c * logps_BT[batch.loss_mask_BT]).sum(), list(model.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter -= rate * gradient


# ------------------------------------------------------------------------------------------------- table of changes


def test_log_probs_are_changes_since_the_first_checkpoint(tables):
    fall = {"chosen": np.full(8, -0.5), "rejected": np.linspace(-2, 1, 8)}
    table = d.displacement([later(tables, 10, fall), Probe(keys(), tables)])
    chosen = rows(table, "chosen_per_token")
    assert chosen.loc[10, ["value", "low", "high"]].tolist() == pytest.approx([-0.5] * 3)
    assert (rows(table, "rejected_per_response").loc[0, ["value", "low", "high"]] == 0).all()
    tokens = tables.scores.query("role == 'rejected'").groupby("batch").size()
    rejected = rows(table, "rejected_per_response").loc[10]
    assert rejected["value"] == pytest.approx((tokens * fall["rejected"]).sum() / 24)
    assert rejected["low"] < rejected["value"] < rejected["high"]
    assert (rejected["n"], chosen.loc[10, "n"]) == (24, len(tables.scores.query("role == 'chosen'")))
    assert rows(table, "chosen_argmax_per_token").loc[10, "value"] == 0


def test_final_answers_count_by_response_and_by_token(tables):
    batches = tables.batches.assign(loss=tables.batches["loss"] - 3.0 * (tables.batches["set"] == "final"))
    table = d.displacement([Probe(keys(), tables), Probe(keys(5), replace(tables, batches=batches))])
    tokens = tables.samples.query("set == 'final'")["response_ids"].map(len).sum()
    assert rows(table, "greedy_per_response").loc[5, "value"] == pytest.approx(3)
    assert rows(table, "greedy_per_token").loc[5, "value"] == pytest.approx(18 / tokens)


def test_shares_count_mini_batches_with_wilson_intervals(tables):
    fall = {"chosen": [-1, -1, -1, 1, 1, 1, 1, 1], "rejected": [1] + 7 * [-1]}
    table = d.displacement([Probe(keys(), tables), later(tables, 10, fall)])
    fell, rose = rows(table, "chosen_fell"), rows(table, "rejected_rose")
    assert fell.index.tolist() == [0]
    assert fell.loc[0, ["value", "low", "high", "n"]].tolist() == pytest.approx([3 / 8, 0.1368, 0.6943, 8], abs=1e-4)
    assert rose.loc[0, "value"] == 1 / 8


def test_norms_and_cosine_are_means_over_pairs(tables):
    table = d.displacement([Probe(keys(), tables)])
    stored = tables.batches.query("component == 'POS' and segment == 'all'")
    norm = rows(table, "positive_norm").loc[0]
    assert norm["value"] == pytest.approx(np.average(stored["grad_norm"], weights=stored["n"]))
    assert norm["low"] < norm["value"] < norm["high"]
    assert -1 <= rows(table, "cosine").loc[0, "value"] <= 1


def test_mini_batches_without_norms_have_no_condition_but_happen(tables):
    """Norms may be measured on a subset: no row, or none of the parts."""
    measured = tables.batches[(tables.batches["set"] == "final") | (tables.batches["batch"] < 5)]
    few = replace(tables, batches=measured)
    fall = {"chosen": np.full(8, -1), "rejected": np.full(8, -1)}
    probes = [Probe(keys(), few), later(few, 10, fall)]
    table, found = d.displacement(probes), d.check(probes).set_index("role")
    assert rows(table, "lowers_chosen").loc[0, "n"] == rows(table, "cosine").loc[0, "n"] == 5
    assert rows(table, "chosen_fell").loc[0, "n"] == 8
    assert rows(table, "chosen_per_response").loc[10, "n"] == 24
    assert found["n"].tolist() == found["n_batches"].tolist() == [5, 5]


def test_without_norms_of_both_parts_there_is_no_condition_and_no_check():
    plain = probed(tiny(), with_reference(pairs(6, batch_size=2), tiny(seed=1)), norms=0)
    fall = {"chosen": np.full(3, -1), "rejected": np.full(3, -1)}
    probes = [Probe(keys(), plain), later(plain, 10, fall)]
    quantities = set(d.displacement(probes)["quantity"])
    assert not quantities & {"lowers_chosen", "raises_rejected", "positive_norm", "cosine"}
    assert {"chosen_fell", "greedy_per_token"} <= quantities
    assert d.check(probes).columns.tolist() == d.CHECK
    assert d.check(probes).empty


def test_a_mini_batch_whose_coefficients_turn_or_vanish_is_left_out(tables):
    scores = tables.scores
    turned = scores["role"].eq("chosen") & scores["sample_id"].eq(scores["sample_id"].iloc[0])
    coefficient = scores["coefficient"].mask(turned, -scores["coefficient"])
    coefficient = coefficient.mask(scores["role"].eq("rejected") & scores["batch"].eq(7), 0.0)
    changed = replace(tables, scores=scores.assign(coefficient=coefficient))
    table = d.displacement([Probe(keys(), changed), Probe(keys(1), changed)])
    for name in ("lowers_chosen", "raises_rejected", "chosen_fell", "rejected_rose"):
        assert rows(table, name).loc[0, "n"] == 7, name
    assert rows(table, "chosen_per_response").loc[0, "n"] == 24


def test_other_pairs_at_the_next_checkpoint_are_an_error(tables):
    other = replace(tables, scores=tables.scores.replace({"sample_id": {tables.scores["sample_id"].iloc[0]: "x"}}))
    with pytest.raises(InputError, match="dpo, seed 0: steps 0 and 10 were probed on different pairs"):
        d.displacement([Probe(keys(), tables), Probe(keys(10), other)])


def test_online_runs_have_no_pairs():
    ppo = probe(tiny(), rollouts(6), final(4), bind("ppo", {"epsilon": 0.2}), options=Options(audits=0))
    assert d.displacement([Probe(keys(), ppo)]).columns.tolist() == d.COLUMNS
    assert d.displacement([Probe(keys(), ppo)]).empty
    assert d.check([Probe(keys(), ppo)]).empty


# -------------------------------------------------------------------------------------------------------- the check


def cases(rng, batches=40, seeds=2, steps=(0, 10, 30), law=0.0):
    """Cases of which `did` is more probable where the ratio is large, the more the larger `law`."""
    index = pd.MultiIndex.from_product([range(batches), range(seeds), steps], names=["batch", "seed", "step"])
    table = index.to_frame(index=False)
    table["ratio"] = rng.normal(1, 0.5, len(table))
    chance = 1 / (1 + np.exp(-law * (table["ratio"] - 1)))
    return table.assign(held=table["ratio"] > 1, did=rng.random(len(table)) < chance)


def test_the_check_counts_cells_and_compares_with_the_base_rate():
    held = np.array([1, 1, 1, 0, 0, 0, 0, 0], dtype=bool)
    did = np.array([1, 1, 0, 1, 0, 0, 0, 0], dtype=bool)
    table = pd.DataFrame({"batch": range(8), "seed": 0, "step": 0, "ratio": held + 0.5, "held": held, "did": did})
    found = d._checked(table)
    assert [found[name] for name in d.CELLS] == [2, 1, 1, 4]
    assert (found["n"], found["n_batches"], found["n_seeds"]) == (8, 8, 1)
    assert (found["share_right"], found["base_rate"]) == (6 / 8, 5 / 8)
    assert found["gain"] == pytest.approx(1 / 8)
    assert found["gain_low"] < 0 < found["gain_high"]


def test_a_condition_that_predicts_gains_and_one_that_does_not_is_not_known():
    rng = np.random.default_rng(0)
    strong, none = d._checked(cases(rng, law=8.0)), d._checked(cases(rng))
    assert strong["gain_low"] > 0
    assert strong["order_low"] > 0.5
    assert none["gain_low"] < 0
    assert none["order_low"] < 0.5 < none["order_high"]


def test_the_order_compares_within_a_checkpoint_only():
    """At step 10 all ratios are larger and every mini-batch did: that is no evidence for the ratio."""
    rng = np.random.default_rng(1)
    table = cases(rng, seeds=1, steps=(0, 10))
    table["did"] = np.where(table["step"] == 10, True, table["batch"] % 2 == 0)
    table["ratio"] += 100.0 * (table["step"] == 10)
    at_start = table[table["step"] == 0]
    did, rest = (at_start.loc[at_start["did"] == value, "ratio"] for value in (True, False))
    expected = mannwhitneyu(did, rest).statistic / (len(did) * len(rest))
    assert d._order(table)["value"] == pytest.approx(expected)


def test_the_order_copes_with_missing_mini_batches_and_with_nothing_to_compare():
    table = cases(np.random.default_rng(2), law=8.0)
    missing = table.drop(index=[0, 7, 50])
    assert d._order(missing)["value"] == pytest.approx(d._order(table)["value"], abs=0.02)
    assert all(math.isnan(value) for value in d._order(table.assign(did=True)).values())


def test_intervals_of_no_effect_hold_the_truth():
    """Of 95 % intervals where the ratio says nothing, about 95 % hold one half."""
    hits = 0
    for seed in range(100):
        found = d._order(cases(np.random.default_rng(seed), seeds=1, steps=(0, 10)))
        hits += found["low"] <= 0.5 <= found["high"]
    assert 88 <= hits <= 99


def test_a_run_is_checked_over_its_seeds(tables):
    fall = {"chosen": np.full(8, -1), "rejected": np.full(8, -1)}
    probes = [probe for seed in (0, 1) for probe in (Probe(keys(0, seed), tables), later(tables, 10, fall, seed))]
    found = d.check(probes).set_index("role")
    assert found.columns.tolist() == [name for name in d.CHECK if name != "role"]
    assert found.loc["chosen", ["n", "n_batches", "n_seeds"]].tolist() == [16, 8, 2]
    assert found.loc["chosen", ["held_and_did", "did_only"]].sum() == 16
    assert found.loc["rejected", ["held_and_did", "did_only"]].sum() == 0

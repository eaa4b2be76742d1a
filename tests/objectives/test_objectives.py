"""Coefficients against autograd of losses written out independently, components, schedules, the registry."""

import math
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from documents import python_of
from hypothesis import given, settings
from hypothesis import strategies as st
from po_dynamics.errors import InputError
from po_dynamics.objectives import declaration, registry
from po_dynamics.objectives import pairs as pairs_module
from po_dynamics.objectives.components import components, groups, thresholds
from po_dynamics.objectives.declaration import REQUIRED, Fraction, offline
from po_dynamics.objectives.pairs import Pairs, PairTerms
from po_dynamics.objectives.registry import OBJECTIVES, bind
from po_dynamics.objectives.schedules import ramp, wave
from po_dynamics.objectives.tokens import Tokens, group_normalise

STEPS = (0, 3, 7, 12, 40)

PARAMETERS = {
    "dpo": {"beta": 0.3},
    "cdpo": {"beta": 0.3, "t1": 3, "t2": 11},
    "dpo_no_neg": {"beta": 0.3, "before": 7},
    "dpo_no_pos": {"beta": 0.3, "after": 7},
    "dpo_switch": {"beta": 0.3, "at": 7},
    "dpo_damped": {"beta": 0.3, "pos": 0.0, "neg": 0.6, "top": 0.3, "bot": 0.0},
    "ipo": {"beta": 0.3},
    "simpo": {"beta": 2.0, "gamma": 0.7},
    "cpo": {"beta": 0.3, "alpha": 0.4},
    "kto": {"beta": 0.3, "desirable": 1.2, "undesirable": 0.7},
    "ra": {"beta": 0.3},
    "ra_posterior": {"beta": 0.3},
    "rda": {"beta": 0.3},
    "rda_posterior": {"beta": 0.3},
    "pra": {"beta": 0.3},
    "pra_posterior": {"beta": 0.3},
    "ppo": {"epsilon": 0.2},
    "cppo_top": {"epsilon": 0.2, "lambda": 0.3},
    "cppo_mid": {"epsilon": 0.2, "lambda": 0.3},
    "ppo_no_top": {"epsilon": 0.2},
    "ppo_no_mid": {"epsilon": 0.2},
    "hppo": {"epsilon": 0.2, "t3": 5, "tau": 0.4},
    "ppo_damped": {"epsilon": 0.2, "pos": 0.5, "neg": 0.0, "mid": 0.3, "bot": 0.0},
    "ppo_clip_higher": {"epsilon": 0.2, "epsilon_high": 0.5},
    "grpo": {"epsilon": 0.2},
}
REWARDED = [name + variant for name in ("ra", "rda", "pra") for variant in ("", "_posterior")]


# ------------------------------------------------------- the textbook losses, mean over pairs or tokens, for autograd


def sigmoid_loss(logits):
    return -F.logsigmoid(logits).mean()


def textbook_rewarded(name, p, logps, reference, r_plus, r_minus, log_z):
    """RA, RDA and PRA of the implicit rewards β log π (plain) or β log π/π_ref (posterior)."""
    kind, _, variant = name.partition("_")
    implicit = p["beta"] * (logps - reference if variant == "posterior" else logps)
    plus, minus = implicit.chunk(2)
    if kind == "ra":
        return F.mse_loss(implicit + p["beta"] * log_z.repeat(2), torch.cat([r_plus, r_minus]))
    if kind == "rda":
        return F.mse_loss(plus - minus, r_plus - r_minus)
    return F.binary_cross_entropy_with_logits(plus - minus, torch.sigmoid(r_plus - r_minus))


def textbook_damped(p, logps, reference):
    """DPO's two halves with factors by component; ω is a constant."""
    (plus, minus), (ref_plus, ref_minus) = (x.chunk(2) for x in (logps, reference))
    omega = (p["beta"] * torch.sigmoid(-p["beta"] * ((plus - ref_plus) - (minus - ref_minus)))).detach()
    low, high = np.quantile(omega.numpy(), [1 / 3, 2 / 3])
    factor = torch.full_like(omega, p.get("mid", 1.0))
    factor[omega <= low], factor[omega >= high] = p.get("bot", 1.0), p.get("top", 1.0)
    return (omega * factor * (p.get("neg", 1) * minus - p.get("pos", 1) * plus)).mean()


def textbook_offline(name, p, step, logps, reference, lengths):
    (plus, minus), (ref_plus, ref_minus), (n_plus, n_minus) = (x.chunk(2) for x in (logps, reference, lengths))
    beta, d_plus, d_minus = p["beta"], plus - ref_plus, minus - ref_minus
    omega = (beta * torch.sigmoid(-beta * (d_plus - d_minus))).detach()
    if name == "dpo":
        return sigmoid_loss(beta * (d_plus - d_minus))
    if name == "cdpo":
        lam = np.clip((step - p["t1"]) / (p["t2"] - p["t1"]), 0, 1)
        return sigmoid_loss(beta * ((1 - lam) * d_plus - lam * d_minus))
    if name == "dpo_no_neg":
        return -(omega * plus).mean() if step < 7 else sigmoid_loss(beta * (d_plus - d_minus))
    if name == "dpo_no_pos":
        return (omega * minus).mean() if step >= 7 else sigmoid_loss(beta * (d_plus - d_minus))
    if name == "dpo_switch":
        return -(omega * plus).mean() if step < 7 else (omega * minus).mean()
    if name == "ipo":
        return ((d_plus - d_minus - 1 / (2 * beta)) ** 2).mean()
    if name == "simpo":
        return sigmoid_loss(beta * plus / n_plus - beta * minus / n_minus - p["gamma"])
    if name == "cpo":
        return sigmoid_loss(beta * (plus - minus)) - p["alpha"] * plus.mean()
    if name == "kto":
        kl_plus, kl_minus = (torch.clamp(d.mean(), min=0).detach() for d in (d_plus, d_minus))
        good = p["desirable"] * (1 - torch.sigmoid(beta * (d_plus - kl_minus)))
        bad = p["undesirable"] * (1 - torch.sigmoid(beta * (kl_plus - d_minus)))
        return torch.cat([good, bad]).mean()
    raise AssertionError(f"no textbook loss for {name}")


def textbook_online(name, p, step, logps, old, adv, quantiles):
    ratio = torch.exp(logps - old)
    high = p.get("epsilon_high", p["epsilon"])
    surrogate = torch.minimum(ratio * adv, torch.clamp(ratio, 1 - p["epsilon"], 1 + high) * adv)
    low_q, high_q = np.quantile(adv.abs().numpy(), [1 / 3, 2 / 3]) if quantiles is None else quantiles
    top, mid = adv.abs() >= high_q, (adv.abs() > low_q) & (adv.abs() < high_q)
    factor = torch.ones_like(adv)
    if name in ("cppo_top", "ppo_no_top"):
        factor[top] = p.get("lambda", 0.0)
    elif name in ("cppo_mid", "ppo_no_mid"):
        factor[mid] = p.get("lambda", 0.0)
    elif name == "hppo":
        factor[adv < 0] = max(min(math.sin(math.pi * step / p["t3"]), 0), -p["tau"]) + 1
    elif name == "ppo_damped":
        factor[top], factor[mid], factor[~top & ~mid] = (p.get(group, 1.0) for group in ("top", "mid", "bot"))
        factor[adv >= 0] *= p.get("pos", 1.0)
        factor[adv < 0] *= p.get("neg", 1.0)
    elif name not in ("ppo", "ppo_clip_higher", "grpo"):
        raise AssertionError(f"no textbook loss for {name}")
    return -(surrogate * factor).mean()


# ---------------------------------------------------------------------------------------------------------------- data


def token_pairs(n=7, length=6, scale=2.0, seed=0):
    """Token log-probs (2N, T) that require gradients, their mask, and the reference sums."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, length + 1, (2 * n,), generator=g)
    mask = torch.arange(length) < lengths[:, None]
    logps = -scale * torch.rand(2 * n, length, generator=g, dtype=torch.float64)
    reference = -scale * length / 2 * torch.rand(2 * n, generator=g, dtype=torch.float64)
    return logps.masked_fill(~mask, 0).requires_grad_(), mask, lengths, reference


def rewards_of(lengths, reference):
    """Rewards of both responses (logits of preference) and log Z, which follow from the lengths and the references."""
    rewards, n = 0.3 * lengths + 0.1 * reference, len(lengths) // 2
    return (*rewards.chunk(2), torch.linspace(0.2, 3, n, dtype=torch.float64))


def as_pairs(logps, lengths, reference):
    sums = (*logps.sum(1).chunk(2), *reference.chunk(2), *lengths.chunk(2))
    return Pairs(*sums, *rewards_of(lengths, reference))


def tokens(seed=0, b=5, t=8, spread=0.4, quantiles=None):
    g = torch.Generator().manual_seed(seed)
    old = -2 * torch.rand(b, t, generator=g, dtype=torch.float64)
    logps = (old + spread * torch.randn(b, t, generator=g, dtype=torch.float64)).requires_grad_()
    mask = torch.arange(t) < torch.randint(1, t + 1, (b,), generator=g)[:, None]
    return Tokens(logps, old, torch.randn(b, t, generator=g, dtype=torch.float64), mask, quantiles)


def offline_names():
    return [name for name, objective in OBJECTIVES.items() if objective.family == "offline"]


def online_names():
    return [name for name, objective in OBJECTIVES.items() if objective.family == "online"]


# --------------------------------------------------------------------------------------------- coefficients = autograd


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("scale", [2.0, 40.0])
@pytest.mark.parametrize("name", offline_names())
def test_offline_coefficients_are_the_gradient(name, scale, step):
    logps, mask, lengths, reference = token_pairs(scale=scale)
    terms = bind(name, PARAMETERS[name])(as_pairs(logps, lengths, reference), step)
    if name in REWARDED:
        loss = textbook_rewarded(name, PARAMETERS[name], logps.sum(1), reference, *rewards_of(lengths, reference))
    elif name == "dpo_damped":
        loss = textbook_damped(PARAMETERS[name], logps.sum(1), reference)
    else:
        loss = textbook_offline(name, PARAMETERS[name], step, logps.sum(1), reference, lengths)
    (expected,) = torch.autograd.grad(loss, logps)
    n = len(terms.loss_N)
    actual = -torch.cat([terms.chosen_N, terms.rejected_N])[:, None] * mask / n
    assert actual.abs().max() > 1e-12
    torch.testing.assert_close(actual, expected * mask, atol=1e-10, rtol=0)
    if name not in ("dpo_no_neg", "dpo_no_pos", "dpo_switch", "dpo_damped"):  # these log DPO's loss
        torch.testing.assert_close(terms.loss_N.mean(), loss.detach(), atol=1e-10, rtol=1e-10)
    assert (terms.weight_N >= 0).all()
    assert not any(tensor.requires_grad for tensor in terms)


LEFT_OUT = ("pos", "neg", "top", "mid", "bot")


@pytest.mark.parametrize("component", LEFT_OUT)
def test_leaving_a_component_out_of_dpo_is_the_textbook_s_gradient(component):
    logps, mask, lengths, reference = token_pairs(n=30)
    parameters = {"beta": 0.3, component: 0.0}
    terms = bind("dpo_damped", parameters)(as_pairs(logps, lengths, reference), 0)
    (expected,) = torch.autograd.grad(textbook_damped(parameters, logps.sum(1), reference), logps)
    actual = -torch.cat([terms.chosen_N, terms.rejected_N])[:, None] * mask / 30
    assert (terms.chosen_N == 0).sum() == {"pos": 30, "neg": 0}.get(component, 10)
    torch.testing.assert_close(actual, expected * mask, atol=1e-10, rtol=0)


@pytest.mark.parametrize("component", LEFT_OUT)
def test_leaving_a_component_out_of_ppo_is_the_textbook_s_gradient(component):
    batch, parameters = tokens(b=12), {"epsilon": 0.2, component: 0.0}
    terms = bind("ppo_damped", parameters)(batch, 0)
    flat = [tensor[batch.mask_BT] for tensor in (batch.logps_BT, batch.old_logps_BT, batch.advantages_BT)]
    (expected,) = torch.autograd.grad(textbook_online("ppo_damped", parameters, 0, *flat, None), batch.logps_BT)
    torch.testing.assert_close(-terms.coefficient_BT / batch.mask_BT.sum(), expected, atol=1e-10, rtol=0)
    plain = bind("ppo")(batch, 0).coefficient_BT
    changed = terms.coefficient_BT != plain
    assert changed.any()
    assert (terms.coefficient_BT[changed] == 0).all()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("quantiles", [None, (0.3, 1.1)])
@pytest.mark.parametrize("name", online_names())
def test_online_coefficients_are_the_gradient(name, quantiles, step):
    batch = tokens(quantiles=quantiles)
    terms = bind(name, PARAMETERS[name])(batch, step)
    flat = [tensor[batch.mask_BT] for tensor in (batch.logps_BT, batch.old_logps_BT, batch.advantages_BT)]
    loss = textbook_online(name, PARAMETERS[name], step, *flat, quantiles)
    (expected,) = torch.autograd.grad(loss, batch.logps_BT)
    n = batch.mask_BT.sum()
    torch.testing.assert_close(-terms.coefficient_BT / n, expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(terms.loss_BT.sum() / n, loss.detach(), atol=1e-10, rtol=1e-10)
    ratio = (batch.logps_BT - batch.old_logps_BT).exp()
    clipped = batch.mask_BT & (
        ((ratio > 1.5) & (batch.advantages_BT > 0)) | ((ratio < 0.8) & (batch.advantages_BT < 0))
    )
    assert clipped.any()  # the case is there
    assert (terms.coefficient_BT[clipped] == 0).all()
    for tensor in terms:
        assert (tensor[~batch.mask_BT] == 0).all()
        assert not tensor.requires_grad


def test_the_example_of_the_document_is_the_gradient_of_its_loss(monkeypatch):
    monkeypatch.setattr(declaration, "DECLARED", {})
    function, loss = python_of("extending.md", "An objective")
    exec(function, dict(vars(pairs_module)))
    (declared,) = declaration.DECLARED.values()
    logps, mask, lengths, reference = token_pairs()
    terms = declared.bind({"beta": 0.3})(as_pairs(logps, lengths, reference), 0)
    d_plus, d_minus = (logps.sum(1) - reference).chunk(2)
    textbook = {"name": declared.name, "beta": 0.3, "d_plus": d_plus, "d_minus": d_minus, "torch": torch}
    exec(f"def given():\n{textwrap.indent(loss, '    ')}", textbook)
    (expected,) = torch.autograd.grad(textbook["given"](), logps)
    actual = -torch.cat([terms.chosen_N, terms.rejected_N])[:, None] * mask / len(terms.loss_N)
    assert 0 < (actual != 0).sum() < mask.sum()  # the hinge is open for some pairs and closed for others
    torch.testing.assert_close(actual, expected * mask, atol=1e-10, rtol=0)
    torch.testing.assert_close(terms.loss_N.mean(), textbook["given"]().detach(), atol=1e-10, rtol=1e-10)


def test_every_objective_is_tested():
    assert set(PARAMETERS) == set(OBJECTIVES)


def test_padding_may_hold_anything():
    batch = tokens()
    rubbish = torch.where(batch.mask_BT, batch.logps_BT.detach(), torch.tensor(torch.inf))
    advantages = torch.where(batch.mask_BT, batch.advantages_BT, torch.tensor(torch.nan))
    dirty = Tokens(rubbish, batch.old_logps_BT, advantages, batch.mask_BT)
    for name in online_names():
        clean = bind(name, PARAMETERS[name])(batch, 7)
        for a, b in zip(clean, bind(name, PARAMETERS[name])(dirty, 7), strict=True):
            assert torch.equal(a, b)


def test_extreme_log_ratios_stay_finite():
    huge = torch.tensor([-3000.0, 3000.0, 0.0])
    zeros, ones = torch.zeros(3), torch.ones(3)
    pairs = Pairs(huge, zeros, zeros, zeros, ones, ones, -huge, huge)
    for name in ("dpo", "cdpo", "simpo", "cpo", "kto", "rda", "pra", "pra_posterior"):
        for tensor in bind(name, PARAMETERS[name])(pairs, 0):
            assert torch.isfinite(tensor).all(), name
    assert bind("dpo", {"beta": 0.1})(pairs, 0).loss_N[0] == pytest.approx(300)


def test_uncontrolled_variants_are_dpo_and_ppo():
    logps, _, lengths, reference = token_pairs()
    pairs = as_pairs(logps, lengths, reference)
    dpo = bind("dpo", {"beta": 0.1})(pairs, 5)
    for name, parameters in {"dpo_no_neg": {"before": 5}, "dpo_no_pos": {"after": 6}, "dpo_damped": {}}.items():
        assert all(map(torch.equal, bind(name, {"beta": 0.1} | parameters)(pairs, 5), dpo))
    ppo = bind("ppo")(tokens(), 5)
    for name, parameters in {
        "cppo_top": {"lambda": 1.0},
        "cppo_mid": {"lambda": 1.0},
        "hppo": {"t3": 20, "tau": 0.4},
        "ppo_damped": {},
        "ppo_clip_higher": {"epsilon_high": 0.2},
        "grpo": {},
    }.items():
        assert all(map(torch.equal, bind(name, parameters)(tokens(), 5), ppo))


def test_one_damped_component_is_the_paper_s_variant():
    pairs, batch = as_pairs(*(token_pairs()[i] for i in (0, 2, 3))), tokens()
    for name, parameters, damped in (
        ("dpo_no_neg", {"beta": 0.1, "before": 9}, {"beta": 0.1, "neg": 0}),
        ("dpo_no_pos", {"beta": 0.1, "after": 5}, {"beta": 0.1, "pos": 0}),
        ("cppo_top", {"lambda": 0.3}, {"top": 0.3}),
        ("ppo_no_mid", {}, {"mid": 0}),
        ("hppo", {"t3": 4, "tau": 0.4}, {"neg": wave(5, 4, 0.4)}),
    ):
        general, given = ("dpo_damped", pairs) if name.startswith("dpo") else ("ppo_damped", batch)
        for ours, expected in zip(bind(general, damped)(given, 5), bind(name, parameters)(given, 5), strict=True):
            assert torch.equal(ours, expected), name


@pytest.mark.parametrize("name", offline_names())
def test_objectives_of_rewards_say_what_is_missing(name):
    pairs = as_pairs(*(token_pairs()[i] for i in (0, 2, 3)))
    bare = Pairs(*list(vars(pairs).values())[:6])
    if name not in REWARDED:
        assert all(map(torch.equal, bind(name, PARAMETERS[name])(bare, 7), bind(name, PARAMETERS[name])(pairs, 7)))
        return
    with pytest.raises(InputError, match=rf"^{name} needs (the rewards|log Z)"):
        bind(name, PARAMETERS[name])(bare, 7)
    with pytest.raises(InputError, match=rf"^{name} needs the rewards of both .* \(rule score_preferences\)"):
        bind(name, PARAMETERS[name])(replace(bare, log_partition_N=pairs.log_partition_N), 7)
    without_partition = replace(pairs, log_partition_N=None)
    if name.startswith("ra"):
        with pytest.raises(InputError, match=rf"^{name} needs log Z .* or take rda"):
            bind(name, PARAMETERS[name])(without_partition, 7)
    else:
        bind(name, PARAMETERS[name])(without_partition, 7)


@pytest.mark.parametrize("name", REWARDED)
def test_at_its_target_an_objective_of_rewards_asks_for_nothing(name):
    rewards, zeros, beta = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64), torch.zeros(2), 0.4
    log_z = torch.logsumexp(rewards / beta, 0)
    logps = rewards / beta - log_z
    pairs = Pairs(*logps.chunk(2), zeros, zeros, zeros, zeros, *rewards.chunk(2), log_z)
    terms = bind(name, {"beta": beta})(pairs, 0)
    for tensor in (terms.chosen_N, terms.rejected_N):
        torch.testing.assert_close(tensor, torch.zeros(2, dtype=torch.float64), atol=1e-14, rtol=0)


def test_pra_posterior_with_hard_labels_is_dpo():
    pairs = as_pairs(*(token_pairs()[i] for i in (0, 2, 3)))
    certain = torch.full((7,), 50.0, dtype=torch.float64)
    hard = replace(pairs, chosen_rewards_N=certain, rejected_rewards_N=-certain)
    for ours, expected in zip(
        bind("pra_posterior", {"beta": 0.3})(hard, 0), bind("dpo", {"beta": 0.3})(pairs, 0), strict=True
    ):
        torch.testing.assert_close(ours, expected, atol=1e-14, rtol=0)


# ------------------------------------------------------------------------------------------------ components, quantiles

weights = st.lists(st.one_of(st.floats(0, 10), st.sampled_from([0.0, 0.05, 1.0])), min_size=1, max_size=40)


@settings(deadline=None, max_examples=200)
@given(weights, st.integers(2, 6))
def test_groups_partition(values, count):
    weight = np.array(values)
    for array in (weight, torch.tensor(weight)):
        masks = groups(array, quantiles=thresholds(array, count))
        assert len(masks) == count
        assert (sum(np.asarray(mask).astype(int) for mask in masks.values()) == 1).all()
    np.testing.assert_allclose(
        thresholds(weight, count), np.quantile(weight, [k / count for k in range(1, count)]), atol=1e-9
    )


@settings(deadline=None, max_examples=100)
@given(weights)
def test_group_rule(values):
    weight = torch.tensor(values, dtype=torch.float64)
    low, high = thresholds(weight)
    masks = groups(weight)
    assert torch.equal(masks["TOP"], weight >= high)
    assert torch.equal(masks["BOT"], (weight <= low) & ~(weight >= high))
    assert torch.equal(masks["MID"], (weight > low) & (weight < high))


def test_ties_go_to_top():
    masks = groups(torch.full((9,), 0.05))
    assert masks["TOP"].all()
    assert not masks["MID"].any()
    assert not masks["BOT"].any()


def test_groups_of_nothing():
    with pytest.raises(InputError, match="no response token"):
        groups(torch.ones(3), torch.zeros(3, dtype=torch.bool))


@pytest.mark.parametrize("name", online_names())
def test_components_add_up(name):
    batch = tokens(seed=3)
    c = bind(name, PARAMETERS[name])(batch, 7).coefficient_BT
    scores = torch.randn(c.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    total = (c * scores).sum()
    for masks in (
        components(batch.advantages_BT >= 0, batch.mask_BT),
        groups(batch.advantages_BT.abs(), batch.mask_BT),
    ):
        assert torch.equal(sum(mask.int() for mask in masks.values()), batch.mask_BT.int())
        torch.testing.assert_close(sum((c * scores)[mask].sum() for mask in masks.values()), total)


def test_components_have_the_sign_of_their_name():
    batch = tokens(seed=3)
    c = bind("ppo")(batch, 7).coefficient_BT
    masks = components(batch.advantages_BT >= 0, batch.mask_BT)
    assert (c[masks["POS"]] >= 0).all()
    assert (c[masks["NEG"]] <= 0).all()


# -------------------------------------------------------------------------------------------- schedules, normalisation


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(0, 500), st.integers(0, 500))
def test_ramp(step, t1, width):
    value = ramp(step, t1, t1 + width)
    assert 0 <= value <= ramp(step + 1, t1, t1 + width) <= 1
    assert ramp(t1 + width, t1, t1 + width) == 1
    assert width == 0 or ramp(t1, t1, t1 + width) == 0


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(1, 400), st.floats(0.001, 2))
def test_wave(step, t3, tau):
    value = wave(step, t3, tau)
    assert 1 - tau <= value <= 1
    assert value == pytest.approx(wave(step + 2 * t3, t3, tau), abs=1e-9)
    if step % (2 * t3) <= t3:
        assert value == pytest.approx(1, abs=1e-9)


def test_wave_of_the_paper():
    assert wave(3, 2, 0.08) == pytest.approx(1 - 0.08)
    assert wave(7, 5, 0.5) == pytest.approx(0.5)
    assert [ramp(t, 100, 300) for t in (0, 100, 200, 300, 900)] == [0, 0, 0.5, 1, 1]


def test_group_normalise():
    rewards = torch.tensor([1.0, 2.0, 3.0, 5.0, 7.0, 4.0], dtype=torch.float64)
    ids = torch.tensor([9, 9, 9, 4, 4, 1])
    expected = [(-1) / 1.0001, 0, 1 / 1.0001, -1 / (2**0.5 + 1e-4), 1 / (2**0.5 + 1e-4), 0]
    torch.testing.assert_close(group_normalise(rewards, ids), torch.tensor(expected, dtype=torch.float64))


# ------------------------------------------------------------------------------------------------------- the registry


def test_new_objective_is_one_function_and_one_line(monkeypatch):
    monkeypatch.setattr(registry, "OBJECTIVES", known := dict(OBJECTIVES))
    monkeypatch.setattr(declaration, "DECLARED", known)

    @offline
    def likelihood(pairs: Pairs, step: int, *, lambda_: Fraction, alpha: float = 2.0) -> PairTerms:
        one = pairs.chosen_logps_N * 0 + alpha * lambda_
        return PairTerms(one, one * 0, one, -one * pairs.chosen_logps_N)

    objective = registry.bind("likelihood", {"lambda": 0.5}, family="offline")
    assert {key: p.default for key, p in objective.declaration.parameters.items()} == {"lambda": REQUIRED, "alpha": 2.0}
    with pytest.raises(InputError, match=r"lambda is 2, but must be a finite number ≥ 0 and ≤ 1"):
        registry.bind("likelihood", {"lambda": 2})
    assert objective.family == "offline"
    logps, _, lengths, reference = token_pairs()
    assert (objective(as_pairs(logps, lengths, reference), 0).chosen_N == 1).all()


def test_an_objective_of_the_other_family_is_refused():
    with pytest.raises(InputError, match=r"ppo is an online objective; here an offline one is needed: .*dpo"):
        bind("ppo", family="offline")


def test_unknown_name():
    with pytest.raises(InputError, match=r"unknown objective 'dop' \(known: .*dpo"):
        bind("dop")


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("cdpo", {"beta": 0.1, "t1": 3, "t_2": 5}, r"unknown parameter t_2 \(allowed: beta, t1, t2\)"),
        ("cdpo", {"beta": 0.1}, r"missing parameter t1, t2"),
        ("cdpo", {"beta": 0.1, "t1": 9, "t2": 5}, r"t2 is 5, but must be a finite number ≥ 9 \(t1\)"),
        ("dpo", {"beta": 0}, r"beta is 0, but must be a finite number > 0"),
        ("dpo", {"beta": float("nan")}, r"beta is nan"),
        ("dpo", {"beta": "0.1"}, r"beta is '0.1'"),
        ("cppo_top", {"lambda": 1.5}, r"lambda is 1.5, but must be a finite number ≥ 0 and ≤ 1"),
        ("cppo_top", {"lambda_": 0.5}, r"unknown parameter lambda_ \(allowed: epsilon, lambda\)"),
        ("hppo", {"t3": True, "tau": 0.1}, r"t3 is True"),
    ],
)
def test_bad_parameters(name, parameters, message):
    with pytest.raises(InputError, match=message):
        bind(name, parameters)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_good_parameters(name):
    bind(name, PARAMETERS[name])


def test_importing_needs_no_torch():
    code = (
        "import sys, po_dynamics.objectives.registry; sys.exit(bool({'torch', 'pandas', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

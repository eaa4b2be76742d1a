"""The exact bandit against closed forms: fixed points, rates, limits under missing support, and what G's sign means."""

from itertools import islice

import numpy as np
import pandas as pd
import pytest
import torch
from po_dynamics.bandit.alignment import FINAL, alignment_of, final_responses, trajectories
from po_dynamics.bandit.bandits import Bandits, draw, log_partition, target
from po_dynamics.bandit.claims import judge
from po_dynamics.bandit.convergence import cases, law_of_steps
from po_dynamics.bandit.descent import distances, path, run, spaced
from po_dynamics.bandit.gradients import ascent, of_divergence, of_pairs, of_ppo
from po_dynamics.bandit.laws import (
    arm_law,
    fixed,
    labels,
    mini_batches,
    on_policy,
    ordered_pairs,
    pair_weights,
    sampled,
)
from po_dynamics.bandit.run import run_bandit
from po_dynamics.errors import InputError
from po_dynamics.settings.bandit import ExactBandit

SETTINGS = ExactBandit(prompts=3, arms=5)
BANDITS = draw(SETTINGS)
TAU = 0.6
TWO = Bandits(torch.tensor([[0.9, -0.4]]).double(), torch.tensor([[0.3, 0.7]]).double().log())
LAWS = [(objective, variant) for objective in ("ra", "rda", "pra") for variant in ("plain", "posterior")]
SMALL = {"prompts": 3, "arms": 4, "missing": 1, "temperatures": [1.0, 0.8], "temperature": 0.8, "reward_spread": 0.5}
SMALL |= {"sample_sizes": [20, 200], "draws": 2, "fit_steps": 500, "alignment_steps": 100}


def static(objective, variant, bandits=BANDITS, coverage="uniform", tau=TAU, missing=2):
    """The exact gradient over a fixed law of pairs; DPO's labels are drawn."""
    kind = "drawn" if objective == "dpo" else "certain"
    weights = pair_weights(arm_law(bandits, coverage, missing), labels(bandits, kind))
    return of_pairs(objective, tau, variant, bandits, fixed(weights))


def every_gradient(variant, bandits=BANDITS):
    yield of_divergence(TAU, variant, bandits)
    yield of_ppo(TAU, variant, bandits, epochs=3)
    yield from (static(objective, variant, bandits) for objective in ("ra", "rda", "pra"))
    yield of_pairs("pra", TAU, variant, bandits, on_policy(labels(bandits, "certain")))
    if variant == "posterior":
        yield static("dpo", variant, bandits)


def direction(gradient, logps, step=0):
    positive, negative = gradient(logps, step)
    return ascent(positive + negative, logps)


def follow(gradient, start, rate, steps):
    return [step.logps_RK for step in islice(path(gradient, start, rate), steps + 1)]


# ------------------------------------------------------------------------------------------------ targets, fixed points


def test_targets_are_boltzmann_distributions():
    weights = (BANDITS.rewards_RK / TAU).exp()
    torch.testing.assert_close(target(BANDITS, TAU, "plain").exp(), weights / weights.sum(1, keepdim=True))
    torch.testing.assert_close(log_partition(BANDITS, TAU, "plain"), weights.sum(1).log())
    weights = weights * BANDITS.ref_logps_RK.exp()
    torch.testing.assert_close(target(BANDITS, TAU, "posterior").exp(), weights / weights.sum(1, keepdim=True))
    assert (BANDITS.rewards_RK.diff(dim=1) <= 0).all()


@pytest.mark.parametrize("variant", ["plain", "posterior"])
def test_the_target_is_where_every_gradient_vanishes(variant):
    goal = target(BANDITS, TAU, variant)
    for gradient in every_gradient(variant):
        assert direction(gradient, goal).abs().max() < 1e-14
        assert direction(gradient, BANDITS.ref_logps_RK).abs().max() > 1e-3


@pytest.mark.parametrize("variant", ["plain", "posterior"])
def test_every_objective_reaches_its_target(variant):
    settings = SETTINGS.model_copy(update={"temperatures": (TAU,), "max_steps": 8000})
    seen = set()
    for case in cases(BANDITS, TAU, settings):
        if case.variant == variant and "missing" not in case.coverages:
            goal = target(case.bandits, TAU, variant)
            done = run(case.gradient, case.bandits.ref_logps_RK, goal, settings)
            assert done.tv_TR[-1].max() < 1e-3, case.keys
            assert np.isfinite(done.reached_R).all()
            seen.add(case.objective)
    assert seen >= {"bda", "ppo", "ra", "rda", "pra"}


# ----------------------------------------------------------------------------------------------- gradients, by autograd


@pytest.mark.parametrize("variant", ["plain", "posterior"])
def test_divergence_is_the_gradient_of_kl(variant):
    logits = torch.randn(BANDITS.rewards_RK.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits.requires_grad_()
    logps = logits.log_softmax(1)
    loss = (logps.exp() * (logps - target(BANDITS, TAU, variant))).sum()
    expected = -torch.autograd.grad(loss, logits)[0]
    logps = logps.detach()
    torch.testing.assert_close(direction(of_divergence(TAU, variant, BANDITS), logps), expected)
    # the policy gradient of the reward with a KL penalty is τ times that
    torch.testing.assert_close(direction(of_ppo(TAU, variant, BANDITS, epochs=3), logps), TAU * expected)


def test_pairs_are_the_gradient_of_the_expected_loss():
    logits = BANDITS.ref_logps_RK.clone().requires_grad_()
    chosen, rejected = ordered_pairs(5)
    logps, law = logits.log_softmax(1), arm_law(BANDITS, "reference", 0)
    ratios = logps - BANDITS.ref_logps_RK
    gap, rewards = ratios[:, chosen] - ratios[:, rejected], BANDITS.rewards_RK
    difference = rewards[:, chosen] - rewards[:, rejected]
    both = law[:, chosen] * law[:, rejected]
    loss = (both * (TAU * gap - difference) ** 2).sum(1) / both.sum(1)
    expected = -torch.autograd.grad(loss.sum(), logits)[0]
    actual = direction(static("rda", "posterior", coverage="reference"), BANDITS.ref_logps_RK)
    torch.testing.assert_close(actual, expected)


def test_dpo_on_drawn_labels_is_posterior_pra_in_expectation():
    logps = follow(static("pra", "posterior"), BANDITS.ref_logps_RK, 0.5, 30)[-1]
    torch.testing.assert_close(
        direction(static("dpo", "posterior"), logps), direction(static("pra", "posterior"), logps)
    )


# ------------------------------------------------------------------------------------------------------------- two arms


@pytest.mark.parametrize("variant", ["plain", "posterior"])
def test_rda_on_two_arms_is_linear(variant):
    """h − Δr shrinks by 1 − 4ητ² a step: the two logits move apart by twice 2ητ(Δr − h)."""
    rate, steps = 0.3, 9
    gap = follow(static("rda", variant, TWO, missing=0), TWO.ref_logps_RK, rate, steps)
    goal = target(TWO, TAU, variant)
    errors = torch.stack([(logps - goal)[:, 0] - (logps - goal)[:, 1] for logps in gap]).flatten()
    expected = errors[0] * (1 - 4 * rate * TAU**2) ** torch.arange(steps + 1).double()
    torch.testing.assert_close(errors, expected)


def test_ra_on_two_arms_contracts_as_its_hessian_says():
    """Near the target errors shrink by 1 − 2ητ²|t|² a step, t the change of the two log-probs with θ_1 − θ_2."""
    goal, rate = target(TWO, TAU, "plain"), 0.3
    p = goal.exp()[0]
    tangent = torch.stack([p[1], -p[0]])  # ∂ log π / ∂ (θ_1 − θ_2)
    shrink = 1 - 2 * rate * TAU**2 * float(tangent @ tangent)
    start = (goal + 1e-6 * torch.tensor([[1.0, -1.0]])).log_softmax(1)
    before, after = (logps - goal for logps in follow(static("ra", "plain", TWO, missing=0), start, rate, 1))
    assert float((after / before)[0, 0]) == pytest.approx(shrink, rel=1e-4)


@pytest.mark.parametrize("objective", ["pra", "dpo"])
def test_pra_on_two_arms_contracts_by_its_law(objective):
    """Near the target h − Δr shrinks by 1 − ητ²σ'(Δr)λ a step, λ = |e_1 − e_2|² = 2."""
    rate, goal = 0.7, target(TWO, TAU, "posterior")
    difference = TWO.rewards_RK[0, 0] - TWO.rewards_RK[0, 1]
    slope = torch.sigmoid(difference) * torch.sigmoid(-difference)
    start = (goal + 1e-6 * torch.tensor([[1.0, -1.0]])).log_softmax(1)
    before, after = (logps - goal for logps in follow(static(objective, "posterior", TWO, missing=0), start, rate, 1))
    shrink = ((after[0, 0] - after[0, 1]) / (before[0, 0] - before[0, 1])).item()
    assert shrink == pytest.approx(1 - rate * TAU**2 * slope.item() * 2, rel=1e-5)


def test_rda_contracts_by_the_least_connected_mode_of_its_pairs():
    """The rate is 1 − 2ητ²λ, λ the smallest non-zero eigenvalue of the pairs' graph Laplacian."""
    one = Bandits(*(table[:1] for table in BANDITS))
    weights = pair_weights(arm_law(one, "reference", 0), labels(one, "certain"))[0]
    chosen, rejected = ordered_pairs(5)
    edges = torch.eye(5).double()[chosen] - torch.eye(5).double()[rejected]
    slowest = torch.linalg.eigvalsh((edges.T * weights) @ edges)[1].item()
    logps = follow(static("rda", "posterior", one, "reference"), one.ref_logps_RK, 0.5, 120)
    errors = [(a - target(one, TAU, "posterior")).abs().max().item() for a in logps]
    assert errors[120] / errors[119] == pytest.approx(1 - 2 * 0.5 * TAU**2 * slowest, rel=1e-3)


# --------------------------------------------------------------------------------------------- support, samples, labels


@pytest.mark.parametrize("objective", ["rda", "pra", "dpo"])
def test_without_support_the_unseen_keep_their_prior_as_if_their_reward_were_the_mean(objective):
    """Differences conserve the sum of the logits they move: θ_k = log π_ref + (r_k − mean r)/τ of the seen."""
    logps = follow(
        static(objective, "posterior", coverage="missing"),
        BANDITS.ref_logps_RK,
        2.0 if objective == "rda" else 20.0,
        600,
    )[-1]
    seen = BANDITS.rewards_RK[:, 2:]
    shift = torch.cat([torch.zeros(3, 2).double(), (seen - seen.mean(1, keepdim=True)) / TAU], 1)
    limit = (BANDITS.ref_logps_RK + shift).log_softmax(1)
    torch.testing.assert_close(logps, limit, atol=1e-8, rtol=0)
    torch.testing.assert_close(logps[:, 0] - logps[:, 1], BANDITS.ref_logps_RK[:, 0] - BANDITS.ref_logps_RK[:, 1])
    assert distances(logps, target(BANDITS, TAU, "posterior"))[0].min() > 0.05


@pytest.mark.parametrize("objective", ["pra", "dpo"])
def test_finite_samples_reach_the_target_only_with_soft_labels(objective):
    generator = torch.Generator().manual_seed(0)
    kind = "drawn" if objective == "dpo" else "certain"
    weights = sampled(pair_weights(arm_law(BANDITS, "uniform", 0), labels(BANDITS, kind)), 200, generator)
    logps = follow(of_pairs(objective, TAU, "posterior", BANDITS, fixed(weights)), BANDITS.ref_logps_RK, 8.0, 700)[-1]
    tv = distances(logps, target(BANDITS, TAU, "posterior"))[0]
    assert tv.max() < 1e-6 if objective == "pra" else tv.min() > 1e-3


def test_certain_labels_lead_to_the_best_response_not_to_the_target():
    weights = pair_weights(arm_law(BANDITS, "uniform", 0), labels(BANDITS, "certain"))
    gradient = of_pairs("dpo", TAU, "posterior", BANDITS, fixed(weights))
    path_ = follow(gradient, BANDITS.ref_logps_RK, 8.0, 1000)
    best = [path_[step].exp()[:, 0] for step in (25, 250, 1000)]
    assert (best[0] < best[1]).all()
    assert (best[1] < best[2]).all()
    assert (best[2] > target(BANDITS, TAU, "posterior").exp()[:, 0]).all()


# -------------------------------------------------------------------------------------------------------- laws of pairs


def test_laws_are_laws():
    for coverage in ("uniform", "reference", "missing"):
        for kind in ("certain", "drawn"):
            weights = pair_weights(arm_law(BANDITS, coverage, 2), labels(BANDITS, kind))
            torch.testing.assert_close(weights.sum(1), torch.ones(3).double())
            assert (weights >= 0).all()
    chosen, rejected = ordered_pairs(5)
    touched = weights[:, (chosen < 2) | (rejected < 2)]
    assert (touched == 0).all()
    worse = labels(BANDITS, "certain")[:, chosen > rejected]  # arms stand in order of reward
    assert (worse == 0).all()
    swapped = labels(BANDITS, "drawn").new_zeros(3, 5, 5)
    swapped[:, chosen, rejected] = labels(BANDITS, "drawn")
    torch.testing.assert_close((swapped + swapped.mT)[:, chosen, rejected], torch.ones(3, 20).double())


def test_mini_batches_are_unbiased_and_fresh():
    weights = pair_weights(arm_law(BANDITS, "uniform", 0), labels(BANDITS, "drawn"))
    law = mini_batches(weights, 4, torch.Generator().manual_seed(3))
    drawn = torch.stack([law(BANDITS.ref_logps_RK, step) for step in range(4000)])
    assert not torch.equal(drawn[0], drawn[1])
    torch.testing.assert_close(drawn.mean(0), weights, atol=0.012, rtol=0)


# -------------------------------------------------------------------------------------------------------------------- G


@pytest.fixture(scope="module")
def followed():
    return list(trajectories(BANDITS, SETTINGS.model_copy(update={"temperature": TAU, "alignment_steps": 120})))


def test_g_is_the_inner_product_of_eq_3(followed):
    trajectory = next(item for keys, item in followed if keys["objective"] == "dpo")
    q = final_responses(trajectory.logps[-1], "drawn")
    logits = trajectory.logps[7].clone().requires_grad_()
    logps = logits.log_softmax(1)
    chosen, rejected = ordered_pairs(5)
    ratios = logps - BANDITS.ref_logps_RK
    both = pair_weights(arm_law(BANDITS, "uniform", 0), labels(BANDITS, "drawn"))
    loss = -(both * torch.nn.functional.logsigmoid(TAU * (ratios[:, chosen] - ratios[:, rejected]))).sum()
    (nll, descent) = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (-(q * logps).sum(), loss))
    parts = {name: alignment_of(trajectory, q, name, SETTINGS)[0][7] for name in ("TOT", "POS", "NEG")}
    np.testing.assert_allclose(parts["TOT"], (nll * descent).sum(1).numpy(), atol=1e-14)
    np.testing.assert_allclose(parts["POS"] + parts["NEG"], parts["TOT"], atol=1e-14)


def test_g_is_the_slope_and_a_fall_is_certain_where_it_is_not_positive(followed):
    """log-likelihood is concave in the logits: change ≤ ηG, with equality for small steps."""
    for keys, trajectory in followed:
        for final in FINAL:
            q = final_responses(trajectory.logps[-1], final)
            for component in ("TOT", "POS", "NEG"):
                G, change = alignment_of(trajectory, q, component, SETTINGS)
                if component != "TOT" or keys["training"] == "exact":
                    assert (change <= SETTINGS.learning_rate * G + 1e-13).all()
                tiny = SETTINGS.model_copy(update={"learning_rate": 1e-6})
                if component != "TOT":
                    np.testing.assert_allclose(alignment_of(trajectory, q, component, tiny)[1] / 1e-6, G, atol=1e-5)


# ---------------------------------------------------------------------------------------------- settings, tables, whole


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"arm": 3}, r"'bandit.arm' is unknown; allowed here: prompts, arms"),
        ({"arms": 2.5}, r"'bandit.arms' is 2.5; it must be of type integer"),
        ({"arms": 3}, r"'bandit.missing' is 2; it must be at most 1: pairs need two of 3 arms"),
        ({"temperatures": [0.5, 0]}, r"'bandit.temperatures.1' is 0; it must be greater than 0"),
        ({"temperatures": [0.5]}, r"'bandit.temperatures' is .*; it must be of at least 2 entries"),
        ({"temperatures": [0.5, 0.5]}, r"'bandit.temperatures' is .*; it must be a list without repetition"),
        ({"draws": True}, r"'bandit.draws' is True"),
        ({"temperature": 0.6}, r"'bandit.temperature' is 0.6; it must be one of temperatures, \[1.0, "),
        ({"tolerance": float("nan")}, r"'bandit.tolerance' is nan; it must be a finite number"),
    ],
)
def test_bad_settings(mapping, message):
    with pytest.raises(InputError, match=message):
        ExactBandit.of(mapping, "bandit")


def test_too_large_a_step_is_an_error_with_a_way_out():
    with pytest.raises(InputError, match=r"diverged at step \d+ with learning_rate 50; lower it"):
        follow(static("rda", "posterior"), BANDITS.ref_logps_RK, 50, 2000)


def test_reached_is_where_the_distance_stays_below():
    done = run(static("rda", "plain"), BANDITS.ref_logps_RK, target(BANDITS, TAU, "plain"), SETTINGS)
    logps = follow(static("rda", "plain"), BANDITS.ref_logps_RK, SETTINGS.learning_rate, int(done.steps_T[-1]))
    tv = torch.stack([distances(a, target(BANDITS, TAU, "plain"))[0] for a in logps]).numpy()
    for prompt, steps in enumerate(done.reached_R.astype(int)):
        assert (tv[steps:, prompt] < SETTINGS.tolerance).all()
        assert tv[steps - 1, prompt] >= SETTINGS.tolerance
    np.testing.assert_allclose(done.tv_TR, tv[done.steps_T])
    assert spaced(100)[:3] == [0, 1, 2]
    assert spaced(100)[-1] == 100


def test_law_of_steps_finds_the_exponent():
    taus, prompts = (1.0, 0.5, 0.25), range(4)
    rows = [
        {"objective": "pra", "variant": "plain", "coverage": "uniform", "tau": tau, "prompt": p, "tv": 0.0, "kl": 0.0}
        | {"steps": 1000 * (1 + p) * tau ** -(2 + 0.1 * (p - 1.5))}
        for tau in taus
        for p in prompts
    ]
    law = law_of_steps(pd.DataFrame(rows), SETTINGS)
    assert law["exponent"].unique() == pytest.approx([2.0])
    assert (law["low"] < 2).all()
    assert (law["high"] > 2).all()
    assert (law["factor"] * law["tau"] ** -law["exponent"]).to_numpy() == pytest.approx(law["steps"].to_numpy())
    never = [row | {"steps": np.nan} for row in rows]
    with pytest.raises(InputError, match=r"nothing came within 0.001 in 30000 steps; allow more"):
        law_of_steps(pd.DataFrame(never), SETTINGS)
    rows[0]["steps"] = np.nan
    assert len(law_of_steps(pd.DataFrame([*rows, *[r | {"objective": "ra"} for r in rows[1:]]]), SETTINGS)) == 3


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bandit")
    run_bandit(folder, SMALL)
    return folder


def test_tables(tables):
    names = {
        "bandit",
        "bandit_ends",
        "bandit_law",
        "bandit_samples",
        "bandit_alignment",
        "bandit_signs",
        "bandit_claims",
    }
    assert {path.stem for path in tables.iterdir()} == names
    curves = pd.read_csv(tables / "bandit.csv")
    assert list(curves)[:7] == ["objective", "variant", "tau", "coverage", "step", "tv", "kl"]
    assert (curves["kl"] > -1e-12).all()
    assert (curves["tv"].between(curves["tv_low"] - 1e-12, curves["tv_high"] + 1e-12)).all()
    last = curves.groupby(["objective", "variant", "tau", "coverage"])["tv_high"].last()
    supported = last[last.index.get_level_values("coverage") != "missing"]
    assert len(supported) == 2 * (8 + 10)  # temperatures × (plain + posterior)
    assert supported.max() < 1e-3


def test_claims_hold_here(tables):
    claims = pd.read_csv(tables / "bandit_claims.csv")
    assert list(claims) == ["claim", "model", "verdict", "statistic", "low", "high", "rule"]
    assert (claims["verdict"][:5] == "holds").all()
    late = claims.iloc[5]  # that POS serves the final response at first needs rewards that outweigh π_ref: not here
    assert late["claim"].startswith("DPO's positive learning")
    assert late["high"] < 0
    assert (claims["low"] <= claims["high"]).all()
    signs = pd.read_csv(tables / "bandit_signs.csv")
    exact = signs[(signs["training"] == "exact") & (signs["gap"] == 1)]
    assert (exact["wrong_falls"] == 0).all()


def test_claims_can_fail(tables):
    """Each rule is applied to tables that contradict its claim."""
    ends, law, alignment, signs = (
        pd.read_csv(tables / f"bandit_{n}.csv") for n in ("ends", "law", "alignment", "signs")
    )
    ends["tv"] = 0.005
    law[["exponent", "low", "high"]] = -1.0, -1.2, -0.8
    signs[["agreement", "low", "high"]] = 0.9, 0.85, 0.97
    alignment[["G_low", "G_high"]] = -2.0, -1.0
    judged = judge(ends, law, alignment, signs, ExactBandit.of(SMALL))
    assert judged["verdict"].tolist() == [*["does not hold"] * 4, "open", "does not hold"]


def test_the_same_settings_give_the_same_bytes(tables, tmp_path):
    run_bandit(tmp_path, SMALL)
    for path_ in tables.iterdir():
        assert path_.read_bytes() == (tmp_path / path_.name).read_bytes(), path_.name

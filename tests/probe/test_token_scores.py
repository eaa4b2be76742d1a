"""Token scores and component gradients against finite differences and plain autograd."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from po_dynamics.errors import InputError
from po_dynamics.models.batches import collate, least_padding, token_logps
from po_dynamics.probe import token_scores as ts
from po_dynamics.probe.numerics import exact_arithmetic
from probe_samples import FAMILIES, VOCABULARY, final, pairs, rollouts, tiny


def batch_of(samples, pad=0):
    return collate([s.prompt_ids for s in samples], [s.response_ids for s in samples], pad)


def direction_of(model, samples):
    gradient, _ = ts.nll_gradient(model, batch_of(samples), 1 / len(samples))
    return dict(zip((name for name, _ in model.named_parameters()), gradient, strict=True))


def random_coefficients(batch, seed=0):
    torch.manual_seed(seed)
    return torch.randn(batch.loss_mask_BT.shape, dtype=torch.float64) * batch.loss_mask_BT


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_derivatives_along_v(family):
    """Central differences of log π(y_t) along v, in float64."""
    model = tiny(family, dtype=torch.float64)
    batch = batch_of(pairs(3))
    with exact_arithmetic():
        v = direction_of(model, final(5))
        scores = ts.score_tokens(model, batch, [v])
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                moved = {name: p + sign * 1e-6 * v[name] for name, p in ts.parameters(model).items()}
                ends.append(
                    torch.func.functional_call(
                        model, moved, (), {"input_ids": batch.input_ids_BL, "attention_mask": batch.attention_mask_BL}
                    ).logits.log_softmax(-1)
                )
    targets = batch.input_ids_BL[:, 1:].unsqueeze(-1)
    differences = ((ends[0] - ends[1])[:, :-1].gather(-1, targets).squeeze(-1) / 2e-6) * batch.loss_mask_BT
    torch.testing.assert_close(scores.scores_KBT[0], differences, rtol=1e-6, atol=1e-6)


def measured(model, batch, parts, v, temperature=1.0):
    sums = ts.no_sums(model, len(parts))
    ts.add_gradients(model, batch, list(parts.values()), sums, temperature)
    return ts.measure_gradients(sums, list(model.named_parameters()), v)


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_and_reverse_agree_with_plain_autograd(family):
    model = tiny(family, dtype=torch.float64)
    batch = batch_of(rollouts(6))
    c_BT = random_coefficients(batch)
    with exact_arithmetic():
        v = direction_of(model, final(5))
        forward = -(c_BT * ts.score_tokens(model, batch, [v], 0.7).scores_KBT[0]).sum()
        parts = {"POS": c_BT.clamp(min=0), "NEG": c_BT.clamp(max=0)}
        reverse = measured(model, batch, parts, v, 0.7)
        plain = {name: ts.oracle(model, batch, part, v, 0.7) for name, part in parts.items()}
        gradients = {}
        for name, part in {**parts, "TOT": c_BT}.items():
            loss = -(part * token_logps(model, batch, 0.7)).sum()
            gradients[name] = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    assert forward.item() == pytest.approx(sum(plain.values()), rel=1e-10)
    for c, name in enumerate(parts):
        assert reverse.dots_CP[c].sum().item() == pytest.approx(plain[name], rel=1e-10)
        assert reverse.squares_CP[c].sum().item() == pytest.approx((gradients[name] ** 2).sum().item(), rel=1e-10)
    assert reverse.total_squares_P.sum().item() == pytest.approx((gradients["TOT"] ** 2).sum().item(), rel=1e-10)
    assert reverse.inner_P.sum().item() == pytest.approx((gradients["POS"] @ gradients["NEG"]).item(), rel=1e-10)


def test_components_on_their_own_sequences_equal_masks_on_all():
    """Chosen and rejected run separately; the result is that of masking."""
    model = tiny(dtype=torch.float64)
    batch = batch_of(pairs(4))
    c_BT = random_coefficients(batch)
    chosen = torch.arange(8).unsqueeze(1) % 2 == 0
    parts = {"POS": c_BT * chosen, "NEG": c_BT * ~chosen}
    with exact_arithmetic():
        v = direction_of(model, final(5))
        result = measured(model, batch, parts, v)
        for c, part in enumerate(parts.values()):
            assert result.dots_CP[c].sum().item() == pytest.approx(ts.oracle(model, batch, part, v), rel=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_and_order_do_not_change_scores(family):
    model = tiny(family, dtype=torch.float64)
    samples = pairs(4)
    with exact_arithmetic():
        v = direction_of(model, final(5))
        together = ts.score_tokens(model, batch_of(samples, pad=0), [v])
        backwards = ts.score_tokens(model, batch_of(samples[::-1], pad=VOCABULARY - 1), [v])
        for i, sample in enumerate(samples):
            alone = ts.score_tokens(model, batch_of([sample]), [v]).scores_KBT[0, 0]
            width = alone.shape[0]
            torch.testing.assert_close(together.scores_KBT[0, i, :width], alone, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(backwards.scores_KBT[0, -1 - i, :width], alone, rtol=1e-10, atol=1e-10)
            assert not together.scores_KBT[0, i, width:].any()


def test_log_probs_are_those_of_training_and_the_argmax_is_the_best():
    model, batch = tiny(), batch_of(pairs(4))
    scores = ts.score_tokens(model, batch, [])
    torch.testing.assert_close(scores.logps_BT, token_logps(model, batch).detach())
    logits = model(input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask_BL).logits[:, :-1]
    best = logits.log_softmax(-1).amax(-1).masked_fill(~batch.loss_mask_BT, 0.0)
    torch.testing.assert_close(scores.argmax_logps_BT, best.detach())


def test_the_primal_is_the_same_with_and_without_tangents():
    """So the log-ratio of a policy that is the reference is exactly 0."""
    model, batch = tiny(), batch_of(pairs(4))
    v = direction_of(model, final(3))
    assert torch.equal(ts.score_tokens(model, batch, []).logps_BT, ts.score_tokens(model, batch, [v]).logps_BT)


def test_the_model_is_left_as_it_was():
    model, batch = tiny().train(), batch_of(pairs(2))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: p.clone() for name, p in ts.parameters(model).items()}
    v = direction_of(model, final(3))
    measured(model, batch, {"TOT": random_coefficients(batch).float()}, v)
    assert model.training
    assert all(bool((p.grad == 1).all()) for p in model.parameters())
    assert all(torch.equal(p, before[name]) for name, p in ts.parameters(model).items())


def test_a_model_without_forward_mode_is_refused_with_the_remedy():
    model = tiny()
    model.set_attn_implementation("sdpa")
    with pytest.raises(InputError, match="attn_implementation='eager'"):
        ts.require_forward_mode(model)


def test_runs_of_similar_length_cost_least():
    lengths = sorted(np.random.default_rng(0).integers(1, 40, 9).tolist(), reverse=True)

    def cost(cuts):
        return sum(lengths[a] * (b - a) + 10 for a, b in pairwise(cuts))

    every = [
        [0, *[i for i in range(1, 9) if mask >> i & 1], 9] for mask in range(0, 512, 2)
    ]  # all ways to cut nine rows
    order = np.random.default_rng(1).permutation(9).tolist()
    shuffled = [lengths[place] for place in order]
    groups = least_padding(range(9), shuffled, 10)
    assert [shuffled[row] for group in groups for row in group] == lengths
    assert cost([0, *np.cumsum([len(group) for group in groups]).tolist()]) == min(map(cost, every))
    within = least_padding(range(9), shuffled, 10, 50)
    assert sorted(row for group in within for row in group) == list(range(9))
    assert all(len(group) == 1 or shuffled[group[0]] * len(group) <= 50 for group in within)

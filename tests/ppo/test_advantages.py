"""Rewards, whitening and GAE against their definitions."""

from __future__ import annotations

import pytest
import torch
from po_dynamics.ppo import advantages


def example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rewards, values and mask of three rows whose responses start and end at different columns."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[0, 1, 1, 1, 1, 0], [0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    rewards, values = torch.randn(2, 3, 6, generator=generator, dtype=torch.float64)
    return rewards * mask, values * mask, mask


def test_kl_estimates() -> None:
    logps, ref = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -1.0]])
    torch.testing.assert_close(advantages.kl_estimate(logps, ref, "k1"), torch.tensor([[0.5, -1.0]]))
    ratio = (ref - logps).exp()
    torch.testing.assert_close(advantages.kl_estimate(logps, ref, "k3"), ratio - 1 - ratio.log())
    assert (advantages.kl_estimate(torch.randn(4, 9), torch.randn(4, 9), "k3") >= 0).all()


def test_both_estimates_are_unbiased_and_k3_varies_less() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.4, 0.35, 0.25])
    drawn = torch.multinomial(p, 200_000, replacement=True, generator=generator)
    exact = float((p * (p / q).log()).sum())
    k1, k3 = (advantages.kl_estimate(p.log()[drawn], q.log()[drawn], name) for name in ("k1", "k3"))
    assert float(k1.mean()) == pytest.approx(exact, abs=2e-3)
    assert float(k3.mean()) == pytest.approx(exact, abs=5e-4)
    assert k3.std() < k1.std()


def test_score_lands_in_its_column() -> None:
    rewards = advantages.token_rewards(torch.ones(2, 5), torch.tensor([10.0, 20.0]), torch.tensor([2, 4]), 0.1)
    expected = torch.full((2, 5), -0.1)
    expected[0, 2] += 10
    expected[1, 4] += 20
    torch.testing.assert_close(rewards, expected)


def test_missing_eos_penalty() -> None:
    scores, ended = torch.tensor([1.0, 2.0]), torch.tensor([True, False])
    assert advantages.penalise_missing_eos(scores, ended, 0.5).tolist() == [1.0, 1.5]
    assert advantages.penalise_missing_eos(scores, ended, None).tolist() == [1.0, 2.0]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.9, 0.0)])
def test_gae_is_the_discounted_sum_of_td_errors(gamma: float, lam: float) -> None:
    rewards, values, mask = example()
    found = advantages.estimate(rewards, values, mask, gamma, lam)
    for row in range(3):
        columns = mask[row].nonzero().flatten().tolist()
        for t in columns:
            expected = 0.0
            for k in columns[columns.index(t) :]:
                following = float(values[row, k + 1]) if k + 1 in columns else 0.0
                delta = float(rewards[row, k]) + gamma * following - float(values[row, k])
                expected += (gamma * lam) ** (k - t) * delta
            assert float(found.raw_BT[row, t]) == pytest.approx(expected, abs=1e-12)
    assert (found.raw_BT[~mask] == 0).all()
    assert (found.whitened_BT[~mask] == 0).all()
    torch.testing.assert_close(found.returns_BT, found.raw_BT + values)


def test_whitening_is_masked_and_unbiased() -> None:
    _, values, mask = example()
    values = values + 7 * mask + 100.0 * ~mask  # what lies outside must not matter
    whitened = advantages.whiten(values, mask)[mask]
    assert float(whitened.mean()) == pytest.approx(0, abs=1e-12)
    assert float(whitened.var()) == pytest.approx(1, abs=1e-6)
    kept = advantages.whiten(values, mask, shift_mean=False)
    assert float(kept[mask].mean()) == pytest.approx(float(values[mask].mean()))
    assert (kept[~mask] == 0).all()


def test_whitening_of_one_token_or_none_is_finite() -> None:
    values = torch.tensor([[3.0, 4.0]])
    for mask in (torch.tensor([[True, False]]), torch.zeros(1, 2, dtype=torch.bool)):
        assert advantages.whiten(values, mask).tolist() == [[0.0, 0.0]]


def test_reward_whitening_happens_before_gae() -> None:
    rewards, values, mask = example()
    plain = advantages.estimate(advantages.whiten(rewards, mask, shift_mean=False), values, mask, 1.0, 0.95)
    whitened = advantages.estimate(rewards, values, mask, 1.0, 0.95, whiten_rewards=True)
    torch.testing.assert_close(plain.raw_BT, whitened.raw_BT)


def test_group_relative_advantages_leave_the_returns_to_gae() -> None:
    rewards, values, mask = example()
    rewards, values, mask = (torch.cat((part, part.flip(0))) for part in (rewards, values, mask))
    gae = advantages.estimate(rewards, values, mask, 1.0, 0.95, whiten_rewards=True)
    relative = advantages.estimate(rewards, values, mask, 1.0, 0.95, whiten_rewards=True, group_size=3)
    assert torch.equal(relative.returns_BT, gae.returns_BT)
    assert torch.equal(relative.rewards_BT, gae.rewards_BT)
    assert torch.equal(relative.raw_BT, relative.whitened_BT)
    for rows in (slice(0, 3), slice(3, 6)):
        totals = rewards[rows].sum(1)
        expected = ((totals - totals.mean()) / (totals.std() + 1e-4)).unsqueeze(1) * mask[rows]
        torch.testing.assert_close(relative.raw_BT[rows], expected, atol=1e-6, rtol=1e-6)


def test_kl_coefficient_follows_its_target() -> None:
    adapt = advantages.adapt_kl_coefficient
    assert adapt(0.1, 5.0, None, 32) == 0.1
    assert adapt(0.1, 2.0, 2.0, 32) == 0.1
    assert adapt(0.1, 9.0, 2.0, 100, horizon=1000) == pytest.approx(0.1 * (1 + 0.2 * 0.1))  # error clipped at 20 %
    assert adapt(0.1, 1.8, 2.0, 100, horizon=1000) == pytest.approx(0.1 * (1 - 0.1 * 0.1))


def test_explained_variance() -> None:
    returns, mask = torch.tensor([[1.0, 2.0, 3.0, 99.0]]), torch.tensor([[True, True, True, False]])
    assert float(advantages.explained_variance(returns, returns, mask)) == 1.0
    assert float(advantages.explained_variance(torch.full_like(returns, 5.0), returns, mask)) == pytest.approx(0.0)
    assert float(advantages.explained_variance(returns, torch.ones_like(returns), mask)) == 0.0

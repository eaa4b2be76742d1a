"""Token rewards, whitening and generalised advantage estimation: pure functions of (B, T) tensors.

B sequences, T predictions, aligned with `models.Batch`: column t is the prediction of token t + 1. The response of a
row fills consecutive columns; `mask_BT` is True there. Layouts of the response alone work as well: nothing here
looks at token ids.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from po_dynamics.objectives.tokens import group_normalise

KLEstimator = Literal["k1", "k3"]


class Advantages(NamedTuple):
    """Rewards and what follows from them, (B, T); zero outside the masks."""

    rewards_BT: Tensor
    raw_BT: Tensor
    whitened_BT: Tensor
    returns_BT: Tensor


def kl_estimate(logps_BT: Tensor, ref_logps_BT: Tensor, estimator: KLEstimator = "k1") -> Tensor:
    """Per-token estimate of KL(π ‖ π_ref), nats: k1 = log π/π_ref, k3 = π_ref/π − 1 − log π_ref/π (Schulman 2020)."""
    log_ratio_BT = ref_logps_BT - logps_BT
    return -log_ratio_BT if estimator == "k1" else log_ratio_BT.expm1() - log_ratio_BT


def penalise_missing_eos(scores_B: Tensor, ended_B: Tensor, penalty: float | None) -> Tensor:
    """Subtracts `penalty` from the score of every response without an EOS."""
    return scores_B if penalty is None else scores_B - penalty * (~ended_B).to(scores_B)


def token_rewards(kl_BT: Tensor, scores_B: Tensor, columns_B: Tensor, kl_coefficient: float) -> Tensor:
    """−kl_coefficient · KL on every token, plus the score in its column (Stiennon et al. 2020, Ziegler et al. 2019).

    `columns_B` is the column of each row that receives the score: that of the last response token.
    """
    rewards_BT = -kl_coefficient * kl_BT
    rows_B = torch.arange(len(rewards_BT), device=rewards_BT.device)
    return rewards_BT.index_put((rows_B, columns_B), scores_B.to(rewards_BT), accumulate=True)


def masked_mean(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over the masked entries; 0 where there are none."""
    return values_BT.masked_fill(~mask_BT, 0.0).sum() / mask_BT.sum().clamp(min=1)


def whiten(values_BT: Tensor, mask_BT: Tensor, shift_mean: bool = True) -> Tensor:
    """Masked entries to variance 1 (Bessel's correction), and to mean 0 unless `shift_mean` is off; zero elsewhere.

    For several processes, pass the gathered batch: the moments are those of what is passed. One token or none is
    returned as zero variance leaves it, without NaN.
    """
    count = mask_BT.sum()
    mean = masked_mean(values_BT, mask_BT)
    variance = (values_BT - mean).square().masked_fill(~mask_BT, 0.0).sum() / (count - 1).clamp(min=1)
    whitened_BT = (values_BT - mean) * torch.rsqrt(variance + 1e-8)
    return (whitened_BT if shift_mean else whitened_BT + mean).masked_fill(~mask_BT, 0.0)


def gae(rewards_BT: Tensor, values_BT: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimation, Â_t = Σ_l (γλ)^l δ_{t+l} (Schulman et al. 2016, Eq. 16); no bootstrap at T.

    Both inputs are zero after the end of each response, so the recursion starts from zero there.
    """
    advantage_B = torch.zeros_like(values_BT[:, 0])
    next_value_B = torch.zeros_like(advantage_B)
    columns = []
    for reward_B, value_B in zip(reversed(rewards_BT.unbind(1)), reversed(values_BT.unbind(1)), strict=True):
        advantage_B = reward_B + gamma * next_value_B - value_B + gamma * lam * advantage_B
        next_value_B = value_B
        columns.append(advantage_B)
    return torch.stack(columns[::-1], dim=1)


def estimate(
    rewards_BT: Tensor,
    values_BT: Tensor,
    mask_BT: Tensor,
    gamma: float,
    lam: float,
    whiten_rewards: bool = False,
    group_size: int | None = None,
) -> Advantages:
    """Advantages and the returns that the critic learns, of the response tokens `mask_BT` of a whole batch.

    Without a `group_size`, the raw advantages are GAE's and are whitened. With one (GRPO), they compare the responses
    to one prompt, and are not whitened again; the returns are GAE's all the same.
    """
    gae_rewards_BT = whiten(rewards_BT, mask_BT, shift_mean=False) if whiten_rewards else rewards_BT
    gae_BT = gae(gae_rewards_BT, values_BT, gamma, lam).masked_fill(~mask_BT, 0.0)
    returns_BT = gae_BT + values_BT
    if group_size is not None:
        relative_BT = group_relative(rewards_BT, mask_BT, group_size)
        return Advantages(gae_rewards_BT, relative_BT, relative_BT, returns_BT)
    return Advantages(gae_rewards_BT, gae_BT, whiten(gae_BT, mask_BT), returns_BT)


def group_relative(rewards_BT: Tensor, mask_BT: Tensor, size: int) -> Tensor:
    """Advantages of GRPO (arXiv 2402.03300, outcome supervision), (B, T); `size` consecutive rows share a prompt.

    A response's reward is the sum of its token rewards, score − kl_coefficient · KL(response); normalised within the
    group, it is the advantage of all its tokens.
    """
    rewards_B = rewards_BT.sum(1)
    groups_B = torch.arange(len(rewards_B), device=rewards_B.device) // size
    advantages_B = group_normalise(rewards_B, groups_B)
    return advantages_B.unsqueeze(1).expand_as(mask_BT).masked_fill(~mask_BT, 0.0)


def adapt_kl_coefficient(
    coefficient: float, kl: float, target: float | None, episodes: int, horizon: int = 10_000
) -> float:
    """Proportional controller of the KL coefficient (Ziegler et al. 2019, Eq. 3); unchanged without a target.

    `kl` and `target` are nats per response, `episodes` the roll-outs since the last change.
    """
    if target is None:
        return coefficient
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return coefficient * (1.0 + error * episodes / horizon)


def explained_variance(values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """1 − Var[returns − values] / Var[returns] over the masked entries; 0 where the returns do not vary."""
    returns, residual = returns_BT[mask_BT], (returns_BT - values_BT)[mask_BT]
    variance = returns.var(unbiased=False) if returns.numel() else returns.new_zeros(())
    return 1.0 - residual.var(unbiased=False) / variance if variance > 0 else torch.zeros_like(variance)

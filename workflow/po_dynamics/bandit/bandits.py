"""The bandits: rewards and reference policies, target policies.

Rows are bandits (a prompt under one law of pairs), columns their K arms (responses). Rewards are in logits of
preference, P(i ≻ j) = σ(r_i − r_j); arms stand in order of reward, the best first.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from po_dynamics.settings.bandit import ExactBandit


class Bandits(NamedTuple):
    """R bandits of K arms: rewards, and log-probs of the reference policy (nats)."""

    rewards_RK: Tensor
    ref_logps_RK: Tensor

    def repeat(self, times: int) -> Bandits:
        """Every bandit `times` times, as blocks."""
        return Bandits(self.rewards_RK.repeat(times, 1), self.ref_logps_RK.repeat(times, 1))


def draw(settings: ExactBandit) -> Bandits:
    """Normal rewards, sorted, and reference policies that know nothing of them; a row per prompt; float64."""
    generator = torch.Generator().manual_seed(settings.seed)
    rewards_PK, logits_PK = (
        spread * torch.randn(settings.prompts, settings.arms, generator=generator, dtype=torch.float64)
        for spread in (settings.reward_spread, settings.reference_spread)
    )
    return Bandits(rewards_PK.sort(1, descending=True).values, logits_PK.log_softmax(1))


def prior(bandits: Bandits, variant: str) -> Tensor:
    """Log-probs that multiply exp(r/τ) (R, K): π_ref's (posterior), or 0 (plain: no prior)."""
    return {"plain": torch.zeros_like(bandits.ref_logps_RK), "posterior": bandits.ref_logps_RK}[variant]


def target(bandits: Bandits, tau: float, variant: str) -> Tensor:
    """log π^τ (plain) or log π^τ_ref (posterior), (R, K)."""
    return (prior(bandits, variant) + bandits.rewards_RK / tau).log_softmax(1)


def log_partition(bandits: Bandits, tau: float, variant: str) -> Tensor:
    """log Z (R,) of the target, nats."""
    return (prior(bandits, variant) + bandits.rewards_RK / tau).logsumexp(1)

"""Gradients on the logits of a tabular softmax policy, from the coefficients of the very objectives that train models.

With c the coefficient of a response and e_k a unit vector, ∇ log π(k) = e_k − π, and so
−∇L = Σ_k C_k (e_k − π), C_k the expected coefficient of arm k.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from po_dynamics.bandit.bandits import Bandits, log_partition, prior, target
from po_dynamics.bandit.laws import Law, ordered_pairs
from po_dynamics.objectives.pairs import Pairs, dpo
from po_dynamics.objectives.rewards import pra, pra_posterior, ra, ra_posterior, rda, rda_posterior
from po_dynamics.objectives.tokens import Tokens, ppo

# Imported by name, so that an edit of one of them makes the bandit stale and that of another objective does not.
OF_PAIRS = {f.__name__: f for f in (dpo, ra, ra_posterior, rda, rda_posterior, pra, pra_posterior)}


class Coefficients(NamedTuple):
    """C (R, K) of the two components: POS and NEG are chosen and rejected responses, or advantages ≥ 0 and < 0."""

    positive_RK: Tensor
    negative_RK: Tensor


Gradient = Callable[[Tensor, int], Coefficients]  # (log π (R, K), step) → C


def ascent(coefficients_RK: Tensor, logps_RK: Tensor) -> Tensor:
    """−∇L on the logits (…, K)."""
    return coefficients_RK - logps_RK.exp() * coefficients_RK.sum(-1, keepdim=True)


def of_pairs(objective: str, tau: float, variant: str, bandits: Bandits, law: Law) -> Gradient:
    """An offline objective (`ra`, `rda`, `pra`: with their `variant`; `dpo`) in expectation over a law of pairs."""
    name = f"{objective}_posterior" if variant == "posterior" and objective != "dpo" else objective
    terms_of = OF_PAIRS[name]
    (rows, arms), (chosen, rejected) = bandits.rewards_RK.shape, ordered_pairs(bandits.rewards_RK.shape[1])
    ones_N = torch.ones(rows * len(chosen), dtype=torch.float64)
    known = {
        "ref_chosen_logps_N": bandits.ref_logps_RK[:, chosen].flatten(),
        "ref_rejected_logps_N": bandits.ref_logps_RK[:, rejected].flatten(),
        "chosen_rewards_N": bandits.rewards_RK[:, chosen].flatten(),
        "rejected_rewards_N": bandits.rewards_RK[:, rejected].flatten(),
        "log_partition_N": log_partition(bandits, tau, variant).repeat_interleave(len(chosen)),
        "chosen_lengths_N": ones_N,
        "rejected_lengths_N": ones_N,
    }
    to_chosen_MK, to_rejected_MK = (torch.eye(arms, dtype=torch.float64)[i] for i in (chosen, rejected))

    def gradient(logps_RK: Tensor, step: int) -> Coefficients:
        pairs = Pairs(logps_RK[:, chosen].flatten(), logps_RK[:, rejected].flatten(), **known)
        terms = terms_of(pairs, step, beta=tau)
        weights_RM = law(logps_RK, step)
        positive_RM, negative_RM = (c_N.view(rows, -1) * weights_RM for c_N in (terms.chosen_N, terms.rejected_N))
        return Coefficients(positive_RM @ to_chosen_MK, negative_RM @ to_rejected_MK)

    return gradient


def of_divergence(tau: float, variant: str, bandits: Bandits) -> Gradient:
    """BDA: KL(π ‖ target), nats, in exact expectation over the policy; the advantage is log target/π + KL."""
    target_RK = target(bandits, tau, variant)

    def gradient(logps_RK: Tensor, _step: int) -> Coefficients:
        advantages_RK = _centred(target_RK - logps_RK, logps_RK)
        return _by_sign(logps_RK.exp() * advantages_RK, advantages_RK)

    return gradient


def of_ppo(tau: float, variant: str, bandits: Bandits, epochs: int) -> Gradient:
    """BDA by `ppo`: reward minus τ log π/prior, in expectation over the policy `epochs` steps are taken from.

    Its advantages are τ times those of `of_divergence`: the same target, in units of reward.
    """
    prior_RK = prior(bandits, variant)
    mask_RK = torch.ones_like(bandits.rewards_RK, dtype=torch.bool)
    sampler = [bandits.ref_logps_RK]  # the policy that answers were drawn from

    def gradient(logps_RK: Tensor, step: int) -> Coefficients:
        if step % epochs == 0:
            sampler[0] = logps_RK
        old_RK = sampler[0]
        advantages_RK = _centred(bandits.rewards_RK - tau * (old_RK - prior_RK), old_RK)
        terms = ppo(Tokens(logps_RK, old_RK, advantages_RK, mask_RK), step)
        return _by_sign(old_RK.exp() * terms.coefficient_BT, advantages_RK)

    return gradient


def _centred(values_RK: Tensor, logps_RK: Tensor) -> Tensor:
    return values_RK - (logps_RK.exp() * values_RK).sum(1, keepdim=True)


def _by_sign(coefficients_RK: Tensor, advantages_RK: Tensor) -> Coefficients:
    positive_RK = advantages_RK >= 0
    return Coefficients(coefficients_RK * positive_RK, coefficients_RK * ~positive_RK)

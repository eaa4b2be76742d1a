"""Where pairs come from: laws over ordered pairs (chosen i, rejected j), i ≠ j, as weights (R, M) that sum to 1.

Two arms are drawn from one law of arms, until they differ; then a label says which of the two is chosen.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from po_dynamics.bandit.bandits import Bandits

Law = Callable[[Tensor, int], Tensor]  # (log π (R, K), step) → weights (R, M)

OFFLINE = ("uniform", "reference", "missing")
ON_POLICY = "policy"


@functools.cache
def ordered_pairs(arms: int) -> tuple[Tensor, Tensor]:
    """Indices (M,) of the chosen and of the rejected arm, M = K(K − 1)."""
    chosen, rejected = torch.cartesian_prod(torch.arange(arms), torch.arange(arms)).unbind(1)
    return chosen[chosen != rejected], rejected[chosen != rejected]


def arm_law(bandits: Bandits, coverage: str, missing: int) -> Tensor:
    """Probability of each arm (R, K): uniform, as π_ref, or uniform without the `missing` best arms."""
    if coverage == "reference":
        return bandits.ref_logps_RK.exp()
    law_RK = torch.ones_like(bandits.rewards_RK)
    if coverage == "missing":
        law_RK[:, :missing] = 0
    return law_RK / law_RK.sum(1, keepdim=True)


def labels(bandits: Bandits, kind: str) -> Tensor:
    """Probability (R, M) that i is the chosen one of {i, j}: 1 for the better ("certain") or σ(r_i − r_j) ("drawn")."""
    chosen, rejected = ordered_pairs(bandits.rewards_RK.shape[1])
    gap_RM = bandits.rewards_RK[:, chosen] - bandits.rewards_RK[:, rejected]
    return {"certain": (gap_RM > 0).double(), "drawn": gap_RM.sigmoid()}[kind]


def pair_weights(law_RK: Tensor, labels_RM: Tensor) -> Tensor:
    """Weights (R, M) of the ordered pairs."""
    chosen, rejected = ordered_pairs(law_RK.shape[1])
    weights_RM = law_RK[:, chosen] * law_RK[:, rejected] * labels_RM
    return weights_RM / weights_RM.sum(1, keepdim=True)


def fixed(weights_RM: Tensor) -> Law:
    """The exact expectation over a law that does not change."""
    return lambda _logps_RK, _step: weights_RM


def on_policy(labels_RM: Tensor) -> Law:
    """The exact expectation over pairs of the policy that is trained."""
    return lambda logps_RK, _step: pair_weights(logps_RK.exp(), labels_RM)


def sampled(weights_RM: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The law (R, M) of `count` pairs drawn from another law."""
    drawn_RN = torch.multinomial(weights_RM, count, replacement=True, generator=generator)
    counts_RM = torch.zeros_like(weights_RM).scatter_add(1, drawn_RN, torch.ones_like(drawn_RN, dtype=torch.float64))
    return counts_RM / count


def mini_batches(weights_RM: Tensor, count: int, generator: torch.Generator) -> Law:
    """`count` fresh pairs at every step."""
    return lambda _logps_RK, _step: sampled(weights_RM, count, generator)

"""Objectives of rolled-out tokens as coefficients (PPO and its family)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from po_dynamics.objectives.components import components, damping, groups
from po_dynamics.objectives.declaration import Fraction, Positive, online, online_grouped
from po_dynamics.objectives.schedules import wave

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """Response tokens of a roll-out batch (or of a part of it).

    `quantiles` are (Q_1/3, Q_2/3) of |Â| over the *whole* roll-out batch; None takes them from the tokens given.
    """

    logps_BT: Tensor
    old_logps_BT: Tensor
    advantages_BT: Tensor
    mask_BT: Tensor
    quantiles: tuple[float, float] | None = None


class TokenTerms(NamedTuple):
    """c, the weight |Â| and the loss of every token; all 0 outside the mask."""

    coefficient_BT: Tensor
    weight_BT: Tensor
    loss_BT: Tensor


def _clipped(tokens: Tokens, low: float, high: float, factor_BT: Tensor | float = 1.0) -> TokenTerms:
    """−CLIP_Â(ratio)·Â·factor per token, CLIP_a(r) = min(r, 1 + high) if a ≥ 0 else max(r, 1 − low), Eq. 11."""
    ratio_BT = (tokens.logps_BT - tokens.old_logps_BT).where(tokens.mask_BT, 0.0).exp()
    advantages_BT = tokens.advantages_BT.where(tokens.mask_BT, 0.0)
    positive_BT = advantages_BT >= 0
    clip_BT = ratio_BT.clamp(max=1 + high).where(positive_BT, ratio_BT.clamp(min=1 - low))
    inside_BT = clip_BT == ratio_BT
    weighted_BT = advantages_BT * factor_BT
    return TokenTerms((ratio_BT * weighted_BT).where(inside_BT, 0.0), advantages_BT.abs(), -clip_BT * weighted_BT)


def _damped(tokens: Tokens, epsilon: float, **factors: float) -> TokenTerms:
    """PPO with the tokens of each component that is named multiplied by its factor."""
    masks = components(tokens.advantages_BT >= 0, tokens.mask_BT)
    if not factors.keys() <= masks.keys():
        masks |= groups(tokens.advantages_BT.abs(), tokens.mask_BT, tokens.quantiles)
    return _clipped(tokens, epsilon, epsilon, damping(factors, masks, tokens.advantages_BT.dtype))


@online
def ppo(tokens: Tokens, step: int, *, epsilon: Positive = 0.2) -> TokenTerms:
    """Proximal policy optimisation, Eq. 11."""
    return _clipped(tokens, epsilon, epsilon)


@online
def cppo_top(tokens: Tokens, step: int, *, epsilon: Positive = 0.2, lambda_: Fraction) -> TokenTerms:
    """Controlled PPO: tokens with |Â| ≥ Q_2/3 times λ, Eq. 33."""
    return _damped(tokens, epsilon, TOP=lambda_)


@online
def cppo_mid(tokens: Tokens, step: int, *, epsilon: Positive = 0.2, lambda_: Fraction) -> TokenTerms:
    """Controlled PPO: tokens with Q_1/3 < |Â| < Q_2/3 times λ, Eq. 34."""
    return _damped(tokens, epsilon, MID=lambda_)


@online
def ppo_no_top(tokens: Tokens, step: int, *, epsilon: Positive = 0.2) -> TokenTerms:
    """PPO without its top component (Eq. 14): Eq. 33 at λ = 0."""
    return _damped(tokens, epsilon, TOP=0.0)


@online
def ppo_no_mid(tokens: Tokens, step: int, *, epsilon: Positive = 0.2) -> TokenTerms:
    """PPO without its middle component (Eq. 15): Eq. 34 at λ = 0."""
    return _damped(tokens, epsilon, MID=0.0)


@online
def hppo(tokens: Tokens, step: int, *, epsilon: Positive = 0.2, t3: Positive, tau: Positive) -> TokenTerms:
    """Hybrid PPO: tokens with Â < 0 times λ_t, Eq. 35."""
    return _damped(tokens, epsilon, NEG=wave(step, t3, tau))


@online
def ppo_damped(
    tokens: Tokens,
    step: int,
    *,
    epsilon: Positive = 0.2,
    pos: Fraction = 1.0,
    neg: Fraction = 1.0,
    top: Fraction = 1.0,
    mid: Fraction = 1.0,
    bot: Fraction = 1.0,
) -> TokenTerms:
    """PPO with each component (Eqs. 12–16) times a factor of its own: 1 keeps it, 0 leaves it out."""
    return _damped(tokens, epsilon, POS=pos, NEG=neg, TOP=top, MID=mid, BOT=bot)


@online
def ppo_clip_higher(tokens: Tokens, step: int, *, epsilon: Positive = 0.2, epsilon_high: Positive = 0.28) -> TokenTerms:
    """PPO with a higher upper clip (DAPO, arXiv 2503.14476, Eq. 10)."""
    return _clipped(tokens, epsilon, epsilon_high)


@online_grouped
def grpo(tokens: Tokens, step: int, *, epsilon: Positive = 0.2) -> TokenTerms:
    """PPO's clipping (arXiv 2402.03300, Eq. 3) of advantages that `group_normalise` made; the KL is in the reward."""
    return _clipped(tokens, epsilon, epsilon)


def group_normalise(rewards_B: Tensor, group_ids_B: Tensor, epsilon: float = 1e-4) -> Tensor:
    """(r − mean) / (std + ε) within each group of samples of one prompt (B,); std unbiased; 0 for groups of one."""
    index_B: Tensor
    counts_G: Tensor
    _, index_B, counts_G = group_ids_B.unique(return_inverse=True, return_counts=True)
    zeros_G = rewards_B.new_zeros(len(counts_G))
    centred_B = rewards_B - (zeros_G.index_add(0, index_B, rewards_B) / counts_G)[index_B]
    variance_G = zeros_G.index_add(0, index_B, centred_B**2) / (counts_G - 1).clamp(min=1)
    return centred_B / (variance_G.sqrt() + epsilon)[index_B]

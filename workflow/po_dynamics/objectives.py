"""Objectives as coefficients: every gradient here is linear in token log-prob gradients.

    ∇L = −(1/N) Σ_t c_t ∇log π(y_t | y_<t, x),   c_t detached

N counts pairs (offline) or response tokens (online); callers divide by it. The same functions train and probe, so the
analysis cannot drift from the training. Equations are those of arXiv 2512.00778 unless another paper is named.

A new objective is one function under `@offline` or `@online`: its keyword-only arguments are its configuration keys
(a trailing underscore is dropped: `lambda_` is `lambda`), its name is what `method:` says. Objectives are pure
functions of the batch, the step and their parameters; a controller that has a state of its own would live in the
trainer's checkpoint and hand its λ over as a parameter.

Nothing here imports torch (tensor methods only): the Snakefile validates configurations with this registry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from po_dynamics.components import components, groups, thresholds
from po_dynamics.registry import OBJECTIVES, REQUIRED, Objective, get, offline, online

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [  # the names other modules import from here
    "OBJECTIVES",
    "REQUIRED",
    "Objective",
    "PairTerms",
    "Pairs",
    "TokenTerms",
    "Tokens",
    "components",
    "get",
    "group_normalise",
    "groups",
    "ramp",
    "thresholds",
    "wave",
]


@dataclass(frozen=True)
class Pairs:
    """N preference pairs: log-probs are sums over response tokens (nats), lengths are counts of response tokens."""

    chosen_logps_N: Tensor
    rejected_logps_N: Tensor
    ref_chosen_logps_N: Tensor
    ref_rejected_logps_N: Tensor
    chosen_lengths_N: Tensor
    rejected_lengths_N: Tensor

    @property
    def chosen_logratios_N(self) -> Tensor:
        """Δ⁺ = log π(y⁺|x) / π_ref(y⁺|x)."""
        return self.chosen_logps_N - self.ref_chosen_logps_N

    @property
    def rejected_logratios_N(self) -> Tensor:
        """Δ⁻ = log π(y⁻|x) / π_ref(y⁻|x)."""
        return self.rejected_logps_N - self.ref_rejected_logps_N


class PairTerms(NamedTuple):
    """c of every token of the chosen and of the rejected response, the weight ω ≥ 0, and the loss of each pair."""

    chosen_N: Tensor
    rejected_N: Tensor
    weight_N: Tensor
    loss_N: Tensor


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


# ----------------------------------------------------------------------------------- schedules: functions of the step


def ramp(step: int, t1: float, t2: float) -> float:
    """λ of cDPO: 0 until t1, 1 from t2, linear between (below Eq. 32); a hard switch where t1 = t2."""
    if t1 == t2:
        return float(step >= t1)
    return max(min((step - t1) / (t2 - t1), 1.0), 0.0)


def wave(step: int, t3: float, tau: float) -> float:
    """λ of hPPO: 1 for t3 steps, then dips to 1 − τ for t3 steps, and so on (below Eq. 35)."""
    return max(min(math.sin(math.pi * step / t3), 0.0), -tau) + 1


# ------------------------------------------------------------------------------------------------------------- offline


def _nlog_sigmoid(x: Tensor) -> Tensor:
    """−log σ(x), without overflow."""
    return (-x).clamp(min=0) + (-x.abs()).exp().log1p()


@offline
def dpo(pairs: Pairs, step: int, *, beta: float) -> PairTerms:
    """Direct preference optimisation: −log σ(β(Δ⁺ − Δ⁻)), Eq. 4; ω of Eq. 5."""
    logits_N = beta * (pairs.chosen_logratios_N - pairs.rejected_logratios_N)
    weight_N = beta * (-logits_N).sigmoid()  # Eq. 5
    return PairTerms(weight_N, -weight_N, weight_N, _nlog_sigmoid(logits_N))  # Eqs. 6, 7


@offline
def cdpo(pairs: Pairs, step: int, *, beta: float, t1: float, t2: float) -> PairTerms:
    """Controlled DPO, Eq. 32: λ inside the sigmoid, and hence also a factor outside it; ω = β σ(−β[…])."""
    lambda_ = ramp(step, t1, t2)
    logits_N = beta * ((1 - lambda_) * pairs.chosen_logratios_N - lambda_ * pairs.rejected_logratios_N)
    weight_N = beta * (-logits_N).sigmoid()
    return PairTerms((1 - lambda_) * weight_N, -lambda_ * weight_N, weight_N, _nlog_sigmoid(logits_N))  # Eq. 32


@offline
def dpo_no_neg(pairs: Pairs, step: int, *, beta: float, before: float) -> PairTerms:
    """DPO without Eq. 7 (negative learning) before a step; ω and the loss that is logged stay DPO's."""
    terms = dpo(pairs, step, beta=beta)
    return terms._replace(rejected_N=terms.rejected_N * (step >= before))


@offline
def dpo_no_pos(pairs: Pairs, step: int, *, beta: float, after: float) -> PairTerms:
    """DPO without Eq. 6 (positive learning) from a step on; ω and the loss that is logged stay DPO's."""
    terms = dpo(pairs, step, beta=beta)
    return terms._replace(chosen_N=terms.chosen_N * (step < after))


@offline
def dpo_switch(pairs: Pairs, step: int, *, beta: float, at: float) -> PairTerms:
    """Eq. 6 alone before a step, Eq. 7 alone from it on; ω and the loss that is logged stay DPO's."""
    terms = dpo(pairs, step, beta=beta)
    return terms._replace(chosen_N=terms.chosen_N * (step < at), rejected_N=terms.rejected_N * (step >= at))


@offline
def ipo(pairs: Pairs, step: int, *, beta: float) -> PairTerms:
    """Identity PO (arXiv 2310.12036, Eq. 17; τ = β, log-probs summed): (Δ⁺ − Δ⁻ − 1/2β)². Beyond the target c turns."""
    gap_N = pairs.chosen_logratios_N - pairs.rejected_logratios_N - 1 / (2 * beta)
    return PairTerms(-2 * gap_N, 2 * gap_N, 2 * gap_N.abs(), gap_N**2)


@offline
def simpo(pairs: Pairs, step: int, *, beta: float, gamma: float) -> PairTerms:
    """SimPO (arXiv 2405.14734, Eq. 6): −log σ(β log π⁺/|y⁺| − β log π⁻/|y⁻| − γ); no reference; ω = β σ(−…)."""
    dtype = pairs.chosen_logps_N.dtype  # integer lengths would give float32
    chosen_N, rejected_N = beta / pairs.chosen_lengths_N.to(dtype), beta / pairs.rejected_lengths_N.to(dtype)
    logits_N = chosen_N * pairs.chosen_logps_N - rejected_N * pairs.rejected_logps_N - gamma
    slope_N = (-logits_N).sigmoid()
    return PairTerms(chosen_N * slope_N, -rejected_N * slope_N, beta * slope_N, _nlog_sigmoid(logits_N))


@offline
def cpo(pairs: Pairs, step: int, *, beta: float, alpha: float = 1.0) -> PairTerms:
    """Contrastive PO (arXiv 2401.08417, Eqs. 4, 5): −log σ(β(log π⁺ − log π⁻)) − α log π⁺; ω = β σ(−…)."""
    logits_N = beta * (pairs.chosen_logps_N - pairs.rejected_logps_N)
    weight_N = beta * (-logits_N).sigmoid()
    loss_N = _nlog_sigmoid(logits_N) - alpha * pairs.chosen_logps_N
    return PairTerms(weight_N + alpha, -weight_N, weight_N, loss_N)


@offline
def kto(pairs: Pairs, step: int, *, beta: float, desirable: float = 1.0, undesirable: float = 1.0) -> PairTerms:
    """Kahneman–Tversky optimisation (arXiv 2402.01306, Eqs. 7, 8) on pairs, as the mean of its two examples.

    The reference point z is estimated from the batch itself and detached: max(0, mean Δ⁻) for the chosen and
    max(0, mean Δ⁺) for the rejected response (the `kto_pair` estimate: the other half stands for unrelated
    responses), so coefficients depend on the micro-batch. ω is the mean magnitude of the two coefficients.
    """
    value_chosen_N = (beta * (pairs.chosen_logratios_N - pairs.rejected_logratios_N.mean().clamp(min=0))).sigmoid()
    value_rejected_N = (beta * (pairs.chosen_logratios_N.mean().clamp(min=0) - pairs.rejected_logratios_N)).sigmoid()
    chosen_N = desirable * beta * value_chosen_N * (1 - value_chosen_N) / 2
    rejected_N = undesirable * beta * value_rejected_N * (1 - value_rejected_N) / 2
    loss_N = (desirable * (1 - value_chosen_N) + undesirable * (1 - value_rejected_N)) / 2
    return PairTerms(chosen_N, -rejected_N, (chosen_N + rejected_N) / 2, loss_N)


# -------------------------------------------------------------------------------------------------------------- online


def _clipped(tokens: Tokens, low: float, high: float, factor_BT: Tensor | float = 1.0) -> TokenTerms:
    """−CLIP_Â(ratio)·Â·factor per token, CLIP_a(r) = min(r, 1 + high) if a ≥ 0 else max(r, 1 − low), Eq. 11."""
    ratio_BT = (tokens.logps_BT - tokens.old_logps_BT).where(tokens.mask_BT, 0.0).exp()
    advantages_BT = tokens.advantages_BT.where(tokens.mask_BT, 0.0)
    positive_BT = advantages_BT >= 0
    clip_BT = ratio_BT.clamp(max=1 + high).where(positive_BT, ratio_BT.clamp(min=1 - low))
    inside_BT = clip_BT == ratio_BT
    weighted_BT = advantages_BT * factor_BT
    return TokenTerms((ratio_BT * weighted_BT).where(inside_BT, 0.0), advantages_BT.abs(), -clip_BT * weighted_BT)


def _damped(tokens: Tokens, epsilon: float, group: str, lambda_: float) -> TokenTerms:
    """PPO with the tokens of one group of |Â| multiplied by λ."""
    selected_BT = groups(tokens.advantages_BT.abs(), tokens.mask_BT, tokens.quantiles)[group]
    return _clipped(tokens, epsilon, epsilon, 1 - (1 - lambda_) * selected_BT.to(tokens.advantages_BT.dtype))


@online
def ppo(tokens: Tokens, step: int, *, epsilon: float = 0.2) -> TokenTerms:
    """Proximal policy optimisation, Eq. 11."""
    return _clipped(tokens, epsilon, epsilon)


@online
def cppo_top(tokens: Tokens, step: int, *, epsilon: float = 0.2, lambda_: float) -> TokenTerms:
    """Controlled PPO: tokens with |Â| ≥ Q_2/3 times λ, Eq. 33."""
    return _damped(tokens, epsilon, "TOP", lambda_)


@online
def cppo_mid(tokens: Tokens, step: int, *, epsilon: float = 0.2, lambda_: float) -> TokenTerms:
    """Controlled PPO: tokens with Q_1/3 < |Â| < Q_2/3 times λ, Eq. 34."""
    return _damped(tokens, epsilon, "MID", lambda_)


@online
def ppo_no_top(tokens: Tokens, step: int, *, epsilon: float = 0.2) -> TokenTerms:
    """PPO without its top component (Eq. 14): Eq. 33 at λ = 0."""
    return _damped(tokens, epsilon, "TOP", 0.0)


@online
def ppo_no_mid(tokens: Tokens, step: int, *, epsilon: float = 0.2) -> TokenTerms:
    """PPO without its middle component (Eq. 15): Eq. 34 at λ = 0."""
    return _damped(tokens, epsilon, "MID", 0.0)


@online
def hppo(tokens: Tokens, step: int, *, epsilon: float = 0.2, t3: float, tau: float) -> TokenTerms:
    """Hybrid PPO: tokens with Â < 0 times λ_t, Eq. 35."""
    negative_BT = (tokens.advantages_BT < 0).to(tokens.advantages_BT.dtype)
    return _clipped(tokens, epsilon, epsilon, 1 - (1 - wave(step, t3, tau)) * negative_BT)


@online
def ppo_clip_higher(tokens: Tokens, step: int, *, epsilon: float = 0.2, epsilon_high: float = 0.28) -> TokenTerms:
    """PPO with a higher upper clip (DAPO, arXiv 2503.14476, Eq. 10)."""
    return _clipped(tokens, epsilon, epsilon_high)


@online
def grpo(tokens: Tokens, step: int, *, epsilon: float = 0.2) -> TokenTerms:
    """PPO's clipping (arXiv 2402.03300, Eq. 3) of advantages that `group_normalise` made; the KL is in the reward."""
    return _clipped(tokens, epsilon, epsilon)


def group_normalise(rewards_B: Tensor, group_ids_B: Tensor, epsilon: float = 1e-4) -> Tensor:
    """(r − mean) / (std + ε) within each group of samples of one prompt (B,); std unbiased; 0 for groups of one."""
    _, index_B, counts_G = group_ids_B.unique(return_inverse=True, return_counts=True)
    zeros_G = rewards_B.new_zeros(len(counts_G))
    centred_B = rewards_B - (zeros_G.index_add(0, index_B, rewards_B) / counts_G)[index_B]
    variance_G = zeros_G.index_add(0, index_B, centred_B**2) / (counts_G - 1).clamp(min=1)
    return centred_B / (variance_G.sqrt() + epsilon)[index_B]

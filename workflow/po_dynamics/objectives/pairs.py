"""Objectives as coefficients: every gradient here is linear in token log-prob gradients.

    ∇L = −(1/N) Σ_t c_t ∇log π(y_t | y_<t, x),   c_t detached

N counts pairs (offline) or response tokens (online); callers divide by it. The same functions train and probe, so the
analysis cannot drift from the training. Equations are those of arXiv 2512.00778 unless another paper is named.

A new objective is one function under `@offline` or `@online`: its keyword-only arguments are its configuration keys
(a trailing underscore is dropped: `lambda_` is `lambda`), their bounds stand in
their types, its name is what `objective:` says. Objectives are pure
functions of the batch, the step and their parameters; a controller that has a state of its own would live in the
trainer's checkpoint and hand its λ over as a parameter.

Nothing here imports torch (tensor methods only): the Snakefile validates configurations with this registry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, NamedTuple

from po_dynamics.objectives.components import damping, groups
from po_dynamics.objectives.declaration import Bounds, Fraction, NonNegative, Positive, offline
from po_dynamics.objectives.schedules import ramp

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """N preference pairs: log-probs are sums over response tokens (nats), lengths are counts of response tokens.

    Rewards are in logits of preference, P(y1 ≻ y2) = σ(r1 − r2); `log_partition_N` is log Z (nats) of each prompt at
    the temperature and variant of the objective. Only the objectives of `rewards` need these three.
    """

    chosen_logps_N: Tensor
    rejected_logps_N: Tensor
    ref_chosen_logps_N: Tensor
    ref_rejected_logps_N: Tensor
    chosen_lengths_N: Tensor
    rejected_lengths_N: Tensor
    chosen_rewards_N: Tensor | None = None
    rejected_rewards_N: Tensor | None = None
    log_partition_N: Tensor | None = None

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


def nlog_sigmoid(x: Tensor) -> Tensor:
    """−log σ(x), without overflow."""
    return (-x).clamp(min=0) + (-x.abs()).exp().log1p()


@offline
def dpo(pairs: Pairs, step: int, *, beta: Positive) -> PairTerms:
    """Direct preference optimisation: −log σ(β(Δ⁺ − Δ⁻)), Eq. 4; ω of Eq. 5."""
    logits_N = beta * (pairs.chosen_logratios_N - pairs.rejected_logratios_N)
    weight_N = beta * (-logits_N).sigmoid()  # Eq. 5
    return PairTerms(weight_N, -weight_N, weight_N, nlog_sigmoid(logits_N))  # Eqs. 6, 7


@offline
def cdpo(
    pairs: Pairs, step: int, *, beta: Positive, t1: NonNegative, t2: Annotated[float, Bounds(at_least="t1")]
) -> PairTerms:
    """Controlled DPO, Eq. 32: λ inside the sigmoid, and hence also a factor outside it; ω = β σ(−β[…])."""
    lambda_ = ramp(step, t1, t2)
    logits_N = beta * ((1 - lambda_) * pairs.chosen_logratios_N - lambda_ * pairs.rejected_logratios_N)
    weight_N = beta * (-logits_N).sigmoid()
    return PairTerms((1 - lambda_) * weight_N, -lambda_ * weight_N, weight_N, nlog_sigmoid(logits_N))  # Eq. 32


@offline
def dpo_no_neg(pairs: Pairs, step: int, *, beta: Positive, before: NonNegative) -> PairTerms:
    """DPO without Eq. 7 (negative learning) before a step; ω and the loss that is logged stay DPO's."""
    terms = dpo(pairs, step, beta=beta)
    return terms._replace(rejected_N=terms.rejected_N * (step >= before))


@offline
def dpo_no_pos(pairs: Pairs, step: int, *, beta: Positive, after: NonNegative) -> PairTerms:
    """DPO without Eq. 6 (positive learning) from a step on; ω and the loss that is logged stay DPO's."""
    terms = dpo(pairs, step, beta=beta)
    return terms._replace(chosen_N=terms.chosen_N * (step < after))


@offline
def dpo_switch(pairs: Pairs, step: int, *, beta: Positive, at: NonNegative) -> PairTerms:
    """Eq. 6 alone before a step, Eq. 7 alone from it on; ω and the loss that is logged stay DPO's."""
    terms = dpo(pairs, step, beta=beta)
    return terms._replace(chosen_N=terms.chosen_N * (step < at), rejected_N=terms.rejected_N * (step >= at))


@offline
def dpo_damped(
    pairs: Pairs,
    step: int,
    *,
    beta: Positive,
    pos: Fraction = 1.0,
    neg: Fraction = 1.0,
    top: Fraction = 1.0,
    mid: Fraction = 1.0,
    bot: Fraction = 1.0,
) -> PairTerms:
    """DPO with each component (Eqs. 6–10) times a factor of its own: 1 keeps it, 0 leaves it out.

    TOP, MID and BOT are those of the pairs given: in training of a micro-batch. ω and the logged loss stay DPO's.
    """
    terms = dpo(pairs, step, beta=beta)
    factor = damping({"TOP": top, "MID": mid, "BOT": bot}, groups(terms.weight_N), terms.weight_N.dtype)
    return terms._replace(chosen_N=terms.chosen_N * (pos * factor), rejected_N=terms.rejected_N * (neg * factor))


@offline
def ipo(pairs: Pairs, step: int, *, beta: Positive) -> PairTerms:
    """Identity PO (arXiv 2310.12036, Eq. 17; τ = β, log-probs summed): (Δ⁺ − Δ⁻ − 1/2β)². Beyond the target c turns."""
    gap_N = pairs.chosen_logratios_N - pairs.rejected_logratios_N - 1 / (2 * beta)
    return PairTerms(-2 * gap_N, 2 * gap_N, 2 * gap_N.abs(), gap_N**2)


@offline
def simpo(pairs: Pairs, step: int, *, beta: Positive, gamma: float) -> PairTerms:
    """SimPO (arXiv 2405.14734, Eq. 6): −log σ(β log π⁺/|y⁺| − β log π⁻/|y⁻| − γ); no reference; ω = β σ(−…)."""
    dtype = pairs.chosen_logps_N.dtype  # integer lengths would give float32
    chosen_N, rejected_N = beta / pairs.chosen_lengths_N.to(dtype), beta / pairs.rejected_lengths_N.to(dtype)
    logits_N = chosen_N * pairs.chosen_logps_N - rejected_N * pairs.rejected_logps_N - gamma
    slope_N = (-logits_N).sigmoid()
    return PairTerms(chosen_N * slope_N, -rejected_N * slope_N, beta * slope_N, nlog_sigmoid(logits_N))


@offline
def cpo(pairs: Pairs, step: int, *, beta: Positive, alpha: NonNegative = 1.0) -> PairTerms:
    """Contrastive PO (arXiv 2401.08417, Eqs. 4, 5): −log σ(β(log π⁺ − log π⁻)) − α log π⁺; ω = β σ(−…)."""
    logits_N = beta * (pairs.chosen_logps_N - pairs.rejected_logps_N)
    weight_N = beta * (-logits_N).sigmoid()
    loss_N = nlog_sigmoid(logits_N) - alpha * pairs.chosen_logps_N
    return PairTerms(weight_N + alpha, -weight_N, weight_N, loss_N)


@offline
def kto(
    pairs: Pairs, step: int, *, beta: Positive, desirable: NonNegative = 1.0, undesirable: NonNegative = 1.0
) -> PairTerms:
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

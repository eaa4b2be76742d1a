"""Objectives of pairs whose rewards are known: RA, RDA and PRA of UDRRA (arXiv 2502.03095), plain and posterior.

The full text of that paper was not available: names and order of the losses are its abstract's and summaries', the
formulas are **our reading** of them. Each pulls an implicit reward r_θ towards the reward r (or its differences, or
the preference probabilities that it implies), at the temperature τ, which is `beta` here, as in DPO:

    plain       r_θ(y) = τ log π(y|x)               target  π^τ     = exp(r/τ) / Z,           Z = Σ_y exp(r/τ)
    posterior   r_θ(y) = τ log π(y|x) / π_ref(y|x)  target  π^τ_ref = π_ref exp(r/τ) / Z,     Z = E_ref exp(r/τ)

Rewards are in logits of preference, P(y1 ≻ y2) = σ(r1 − r2): the unit in which a Bradley–Terry reward model is
trained. "Chosen" and "rejected" are only names of the two responses: what they are worth is in the rewards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from po_dynamics.errors import InputError
from po_dynamics.objectives.declaration import Positive, offline_partitioned, offline_rewarded
from po_dynamics.objectives.pairs import Pairs, PairTerms, nlog_sigmoid

if TYPE_CHECKING:
    from torch import Tensor


def _rewards(pairs: Pairs, name: str) -> tuple[Tensor, Tensor]:
    """r of the chosen and of the rejected responses (N,)."""
    if pairs.chosen_rewards_N is None or pairs.rejected_rewards_N is None:
        raise InputError(
            f"{name} needs the rewards of both responses of every pair (chosen_rewards_N, rejected_rewards_N), and "
            "these pairs have none: score them with the reward model or a function (rule score_preferences)"
        )
    return pairs.chosen_rewards_N, pairs.rejected_rewards_N


def _log_partition(pairs: Pairs, name: str) -> Tensor:
    """log Z of every pair's prompt (N,), nats."""
    if pairs.log_partition_N is None:
        raise InputError(
            f"{name} needs log Z of every prompt at its temperature (log_partition_N), and these pairs have none: "
            "estimate it from scored samples of the SFT model, or take rda, in which Z cancels"
        )
    return pairs.log_partition_N


def _absolute(chosen_N: Tensor, rejected_N: Tensor, pairs: Pairs, beta: float, name: str) -> PairTerms:
    """Mean over the two responses of (τ · log-prob + τ log Z − r)²; the log-probs are given, plain or over π_ref."""
    log_partition_N = _log_partition(pairs, name)
    chosen_rewards_N, rejected_rewards_N = _rewards(pairs, name)
    chosen_error_N = beta * (chosen_N + log_partition_N) - chosen_rewards_N
    rejected_error_N = beta * (rejected_N + log_partition_N) - rejected_rewards_N
    weight_N = beta * (chosen_error_N.abs() + rejected_error_N.abs()) / 2
    loss_N = (chosen_error_N**2 + rejected_error_N**2) / 2
    return PairTerms(-beta * chosen_error_N, -beta * rejected_error_N, weight_N, loss_N)


def _difference(gap_N: Tensor, pairs: Pairs, beta: float, name: str) -> PairTerms:
    """(τ · gap − (r⁺ − r⁻))² of the gap of log-probs."""
    chosen_rewards_N, rejected_rewards_N = _rewards(pairs, name)
    error_N = beta * gap_N - (chosen_rewards_N - rejected_rewards_N)
    return PairTerms(-2 * beta * error_N, 2 * beta * error_N, 2 * beta * error_N.abs(), error_N**2)


def _preference(gap_N: Tensor, pairs: Pairs, beta: float, name: str) -> PairTerms:
    """Cross-entropy of σ(τ · gap) to P* = σ(r⁺ − r⁻); hard labels (P* = 1) would make c DPO's ω, Eq. 5."""
    chosen_rewards_N, rejected_rewards_N = _rewards(pairs, name)
    label_N, logits_N = (chosen_rewards_N - rejected_rewards_N).sigmoid(), beta * gap_N
    coefficient_N = beta * (label_N - logits_N.sigmoid())
    loss_N = label_N * nlog_sigmoid(logits_N) + (1 - label_N) * nlog_sigmoid(-logits_N)
    return PairTerms(coefficient_N, -coefficient_N, coefficient_N.abs(), loss_N)


@offline_partitioned
def ra(pairs: Pairs, step: int, *, beta: Positive) -> PairTerms:
    """Reward approximation: (τ log π + τ log Z − r)², mean of a pair's two responses; our reading. c may be < 0."""
    return _absolute(pairs.chosen_logps_N, pairs.rejected_logps_N, pairs, beta, "ra")


@offline_partitioned
def ra_posterior(pairs: Pairs, step: int, *, beta: Positive) -> PairTerms:
    """Reward approximation with prior π_ref: (τΔ + τ log Z − r)², Z = E_ref exp(r/τ); our reading. c may be < 0."""
    return _absolute(pairs.chosen_logratios_N, pairs.rejected_logratios_N, pairs, beta, "ra_posterior")


@offline_rewarded
def rda(pairs: Pairs, step: int, *, beta: Positive) -> PairTerms:
    """Reward-difference approximation: (τ(log π⁺ − log π⁻) − (r⁺ − r⁻))²; our reading. Beyond the target c turns."""
    return _difference(pairs.chosen_logps_N - pairs.rejected_logps_N, pairs, beta, "rda")


@offline_rewarded
def rda_posterior(pairs: Pairs, step: int, *, beta: Positive) -> PairTerms:
    """Reward-difference approximation with prior π_ref: (τ(Δ⁺ − Δ⁻) − (r⁺ − r⁻))²; our reading. IPO's form."""
    return _difference(pairs.chosen_logratios_N - pairs.rejected_logratios_N, pairs, beta, "rda_posterior")


@offline_rewarded
def pra(pairs: Pairs, step: int, *, beta: Positive) -> PairTerms:
    """Preference-reward approximation: cross-entropy of σ(τ(log π⁺ − log π⁻)) to P* = σ(r⁺ − r⁻); our reading."""
    return _preference(pairs.chosen_logps_N - pairs.rejected_logps_N, pairs, beta, "pra")


@offline_rewarded
def pra_posterior(pairs: Pairs, step: int, *, beta: Positive) -> PairTerms:
    """PRA with prior π_ref: cross-entropy of σ(τ(Δ⁺ − Δ⁻)) to P* = σ(r⁺ − r⁻); our reading.

    DPO is this with hard labels on offline pairs. PRA-P is this very function on pairs that the policy itself sampled.
    """
    return _preference(pairs.chosen_logratios_N - pairs.rejected_logratios_N, pairs, beta, "pra_posterior")

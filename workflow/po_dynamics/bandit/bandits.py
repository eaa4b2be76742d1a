"""The bandits: settings, rewards and reference policies, target policies.

Rows are bandits (a prompt under one law of pairs), columns their K arms (responses). Rewards are in logits of
preference, P(i ≻ j) = σ(r_i − r_j); arms stand in order of reward, the best first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from po_dynamics.errors import InputError


@dataclass(frozen=True)
class Settings:
    """What the experiment is made of; the defaults take well under a minute on one core."""

    prompts: int = 8  # independent bandits; intervals resample them
    arms: int = 6
    missing: int = 2  # best arms that are in no pair under the law "missing"
    reward_spread: float = 0.8  # standard deviation of rewards, logits of preference
    reference_spread: float = 0.4  # standard deviation of the reference policy's logits
    temperatures: tuple[float, ...] = (1.0, 0.7, 0.5, 0.35)  # τ, or β
    temperature: float = 0.5  # τ of what is not shown against τ
    learning_rate: float = 0.5  # with τ ≤ 1, below the limit of RDA for any law of pairs (2 τ² η λ_max ≤ 2)
    tolerance: float = 1e-3  # total variation at which a target counts as reached
    max_steps: int = 30_000
    ppo_epochs: int = 4  # gradient steps per policy that the responses are drawn from
    sample_sizes: tuple[int, ...] = (50, 500, 5000)  # pairs per prompt
    draws: int = 5  # data sets of each size
    batch: int = 4  # pairs per step of the training on mini-batches
    fit_steps: int = 4000  # of the training on finite data: three times what the exact expectation needs
    alignment_steps: int = 1000  # over which G is followed
    seed: int = 0


def settings_from(mapping: Mapping[str, Any]) -> Settings:
    """Settings with the defaults replaced; lists become tuples.

    Raises:
        InputError: unknown keys, values that are not positive numbers, fewer than two arms in pairs, temperatures
            through which no law can be fitted or that lack `temperature`.
    """
    known = {field.name: field.default for field in fields(Settings)}
    if unknown := sorted(set(mapping) - set(known)):
        raise InputError(f"bandit: unknown setting {', '.join(unknown)} (known: {', '.join(known)})")
    for key, value in mapping.items():
        _check(key, value, known[key])
    given: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in mapping.items()}
    settings = replace(Settings(), **given)
    if settings.arms - settings.missing < 2:
        raise InputError(f"bandit: {settings.missing} of {settings.arms} arms are missing; pairs need two others")
    if len(set(settings.temperatures)) < 2 or settings.temperature not in settings.temperatures:
        seen = f"temperatures {list(settings.temperatures)} and temperature {settings.temperature}"
        raise InputError(f"bandit: {seen}; give at least two, the one among them")
    return settings


def _check(key: str, value: Any, default: Any) -> None:
    several, kind = isinstance(default, tuple), type(default[0] if isinstance(default, tuple) else default)
    wanted = f"{'a list of ' if several else ''}positive {'whole numbers' if kind is int else 'numbers'}"
    entries = value if several else [value]
    fits = isinstance(entries, (list, tuple)) and len(entries) > 0
    allowed = (int,) if kind is int else (int, float)
    least = 0 if key == "seed" else 1e-12
    if not fits or any(isinstance(e, bool) or not isinstance(e, allowed) or not least <= e < math.inf for e in entries):
        raise InputError(f"bandit: {key} is {value!r}, but must be {wanted if several else wanted.removesuffix('s')}")


class Bandits(NamedTuple):
    """R bandits of K arms: rewards, and log-probs of the reference policy (nats)."""

    rewards_RK: Tensor
    ref_logps_RK: Tensor

    def repeat(self, times: int) -> Bandits:
        """Every bandit `times` times, as blocks."""
        return Bandits(self.rewards_RK.repeat(times, 1), self.ref_logps_RK.repeat(times, 1))


def draw(settings: Settings) -> Bandits:
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

"""The exact bandit: sizes, temperatures and the patience of its descents."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from po_dynamics.settings.base import Count, Distinct, Positive, Rate, Settings, Some, mistake


class ExactBandit(Settings):
    """Objectives of rewards, DPO and PPO where target, expectations and gradients are known; half a minute."""

    prompts: Positive = 8
    """independent bandits; intervals resample them"""
    arms: Annotated[int, Field(ge=2)] = 6
    """responses to a prompt"""
    missing: Positive = 2
    """best responses that are in no pair, where some are missing"""
    reward_spread: Rate = 0.8
    """standard deviation of rewards, logits of preference"""
    reference_spread: Rate = 0.4
    """standard deviation of the reference policy's logits"""
    temperatures: Annotated[Distinct[Rate], Field(min_length=2)] = (1.0, 0.7, 0.5, 0.35)
    """τ, or β"""
    temperature: Rate = 0.5
    """τ of what is not shown against τ; one of `temperatures`"""
    learning_rate: Rate = 0.5
    """of gradient descent; with τ ≤ 1 the default is below the limit of RDA for any law of pairs (2 τ² η λ_max ≤ 2)"""
    tolerance: Rate = 1e-3
    """total variation at which a target counts as reached"""
    max_steps: Positive = 30_000
    """of a descent towards the target"""
    ppo_epochs: Positive = 4
    """gradient steps per policy that the responses are drawn from"""
    sample_sizes: Some[Positive] = (50, 500, 5000)
    """pairs per prompt, of finite data"""
    draws: Positive = 5
    """data sets of each size"""
    batch: Positive = 4
    """pairs per step of the training on mini-batches"""
    fit_steps: Positive = 4000
    """of the training on finite data; the default is three times what the exact expectation needs"""
    alignment_steps: Positive = 1000
    """over which G is followed"""
    seed: Count = 0
    """of rewards, reference policies, data sets and bootstraps"""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.arms - self.missing < 2:
            raise mistake("missing", self.missing, f"at most {self.arms - 2}: pairs need two of {self.arms} arms")
        if self.temperature not in self.temperatures:
            raise mistake("temperature", self.temperature, f"one of temperatures, {list(self.temperatures)}")
        return self

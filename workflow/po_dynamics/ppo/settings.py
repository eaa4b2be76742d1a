"""Settings of PPO and its family: `models.<m>.online` of the configuration, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from po_dynamics.errors import InputError
from po_dynamics.objectives.declaration import Objective


@dataclass(frozen=True)
class PPOSettings:
    """Field names are the configuration's keys. Below the blank line: options with defaults that need no entry."""

    max_steps: int  # updates, i.e. roll-out batches
    batch_size: int  # episodes per update, over all processes
    micro_batch_size: int  # sequences per forward pass and process
    epochs: int
    mini_batches: int  # optimizer steps per epoch
    learning_rate: float
    max_prompt_length: int  # tokens; longer prompts are left out, and counted
    max_new_tokens: int

    critic_learning_rate: float | None = None  # null: that of the policy
    critic_warmup_steps: int = 0  # updates in which only the critic learns
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    weight_decay: float = 0.0
    adam_epsilon: float = 1e-5
    max_grad_norm: float | None = 1.0  # null: no clipping
    temperature: float = 1.0
    top_p: float = 1.0
    kl_coefficient: float = 0.05
    kl_target: float | None = None  # nats per response; null: the coefficient stays fixed
    kl_horizon: int = 10_000  # episodes; of the adaptive coefficient
    kl_estimator: Literal["k1", "k3"] = "k1"
    gamma: float = 1.0
    gae_lambda: float = 0.95
    value_clip: float | None = 0.2
    value_coefficient: float = 1.0
    missing_eos_penalty: float | None = None
    whiten_rewards: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_checkpointing: bool = False
    save_every: int = 20  # resumable state, in updates
    checkpoints: tuple[int, ...] = ()
    rollout: Literal["cached", "generate", "vllm"] = "cached"
    rollouts_per_prompt: int = 1  # responses to each prompt of an update; grpo compares them

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> PPOSettings:
        """From a mapping; InputError naming unknown and missing keys and impossible values."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(settings) - known):
            raise InputError(f"online: unknown setting {', '.join(unknown)} (known: {', '.join(sorted(known))})")
        try:
            built = cls(**{**settings, "checkpoints": tuple(sorted(settings.get("checkpoints", ())))})
        except TypeError as error:
            missing = str(error).partition("argument")[2].lstrip("s: ")
            raise InputError(f"online: missing setting {missing}") from None
        built._check()
        return built

    def _check(self) -> None:
        counts = (
            "max_steps",
            "batch_size",
            "micro_batch_size",
            "epochs",
            "mini_batches",
            "max_new_tokens",
            "save_every",
            "rollouts_per_prompt",
        )
        for name in (*counts, "max_prompt_length", "learning_rate", "temperature", "adam_epsilon", "kl_horizon"):
            if not getattr(self, name) > 0:
                raise InputError(f"online: {name} is {getattr(self, name)!r}, but must be above 0")
        for name in ("gamma", "gae_lambda", "top_p"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"online: {name} is {getattr(self, name)!r}, but must be from 0 to 1")
        if self.top_p == 0.0:
            raise InputError("online: top_p is 0: give a value above 0, or 1 for the full softmax")
        choices = {
            "lr_schedule": ("constant", "linear", "cosine"),
            "kl_estimator": ("k1", "k3"),
            "precision": ("fp32", "bf16"),
            "rollout": ("cached", "generate", "vllm"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"online: {name} is {getattr(self, name)!r} (allowed: {', '.join(allowed)})")
        if self.batch_size % self.rollouts_per_prompt:
            raise InputError(
                f"online: batch_size {self.batch_size} must be a multiple of rollouts_per_prompt "
                f"{self.rollouts_per_prompt}"
            )
        if outside := [step for step in self.checkpoints if not 0 <= step <= self.max_steps]:
            raise InputError(f"online: checkpoints {outside} lie outside of 0 … max_steps = {self.max_steps}")

    def group_size(self, objective: Objective, samples: int = 0) -> int | None:
        """Responses whose rewards are normalised together; None for an objective whose advantages are GAE's.

        InputError for groups of one, and where `samples`, the roll-outs of the probe, are no whole number of groups.
        """
        if not objective.grouped:
            return None
        if self.rollouts_per_prompt == 1:
            raise InputError(
                f"online: {objective.name} compares responses to one prompt: rollouts_per_prompt must be above 1"
            )
        if samples % self.rollouts_per_prompt:
            raise InputError(
                f"probe.samples is {samples}, but {objective.name} needs a multiple of rollouts_per_prompt = "
                f"{self.rollouts_per_prompt}"
            )
        return self.rollouts_per_prompt

    def check_processes(self, processes: int) -> None:
        """InputError unless the batch divides into mini-batches, and each mini-batch over the processes."""
        if self.batch_size % (self.mini_batches * processes):
            raise InputError(
                f"online: batch_size {self.batch_size} must be a multiple of mini_batches × processes = "
                f"{self.mini_batches} × {processes}"
            )

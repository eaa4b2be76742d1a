"""Online training: PPO and its family."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from po_dynamics.settings.base import Count, Fraction, NonNegative, Positive, Rate, Schedule, Steps, mistake
from po_dynamics.settings.training import Training, check_checkpoints


class Online(Training):
    """PPO and its family; a run may override any key. A step is an update: one batch of roll-outs, as TRL counts.

    Defaults are TRL's where TRL has one, but for the full softmax at temperature 1 and the weight of the value loss,
    whose optimizer is its own.
    """

    max_steps: Positive
    """updates, i.e. batches of roll-outs"""
    epochs: Positive = 4
    """passes over the roll-outs of an update"""
    mini_batches: Positive = 1
    """optimizer steps of an epoch"""
    critic_learning_rate: Rate | None = None
    """null: that of the policy"""
    critic_warmup_steps: Count = 0
    """updates in which only the critic learns"""
    lr_schedule: Schedule = "constant"
    """of both learning rates"""
    weight_decay: NonNegative = 0.0
    """AdamW's"""
    adam_epsilon: Rate = 1e-5
    """AdamW's ε"""
    max_grad_norm: Rate | None = 1.0
    """gradients are clipped to this norm; null: no clipping"""
    temperature: Rate = 1.0
    """of the roll-outs and of their log-probs"""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """nucleus of the roll-outs; log-probs are of the full softmax"""
    max_prompt_length: Positive = 256
    """tokens; longer prompts are left out and counted"""
    max_new_tokens: Positive = 256
    """tokens of a response"""
    rollouts_per_prompt: Positive = 1
    """a divisor of batch_size; above 1 for grpo, which compares them"""
    rollout: Literal["cached", "generate", "vllm"] = "cached"
    """engine of the roll-outs"""
    kl_coefficient: NonNegative = 0.05
    """of the KL penalty in the reward; with kl_target, its first value"""
    kl_target: Rate | None = None
    """nats per response; null: the coefficient stays fixed"""
    kl_horizon: Positive = 10_000
    """episodes, of the adaptive coefficient"""
    kl_estimator: Literal["k1", "k3"] = "k1"
    """of the KL penalty, per token"""
    gamma: Fraction = 1.0
    """discount of rewards"""
    gae_lambda: Fraction = 0.95
    """of generalised advantage estimation"""
    value_clip: Rate | None = 0.2
    """range in which values may move in an update; null: no clipping"""
    value_coefficient: NonNegative = 1.0
    """of the value loss"""
    missing_eos_penalty: float | None = None
    """taken from the score of a response that does not end; null: none"""
    whiten_rewards: bool = False
    """rewards of a batch are scaled to unit variance"""
    save_every: Positive = 20
    """resumable state, in updates"""
    checkpoints: Steps
    """updates whose policy and critic are kept, probed and evaluated"""

    @model_validator(mode="after")
    def _whole_batches(self) -> Self:
        for key in ("mini_batches", "rollouts_per_prompt"):
            if self.batch_size % getattr(self, key):
                raise mistake("batch_size", self.batch_size, f"a multiple of {key}, {getattr(self, key)}")
        check_checkpoints(self.checkpoints, self.max_steps)
        return self

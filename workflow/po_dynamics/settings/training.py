"""Training: what every kind shares, and supervised fine-tuning, reward models and preference pairs.

Length, batch size and learning rate have no default: they decide what an experiment is.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from po_dynamics.settings.base import (
    Count,
    Fraction,
    NonNegative,
    Positive,
    Precision,
    Rate,
    Schedule,
    Settings,
    Steps,
    like,
    mistake,
)


class Training(Settings):
    """What every kind of training has; master weights and the optimizer's moments are always float32."""

    batch_size: Positive
    """rows of an optimizer step (online: episodes of an update), over all devices"""
    micro_batch_size: Positive = like("batch_size")
    """per device and forward pass"""
    learning_rate: Rate
    """its peak"""
    precision: Precision = "fp32"
    """of forward and backward passes"""
    gradient_checkpointing: bool = False
    """less memory for a third more time"""


class Stage(Training):
    """What training on a table of rows shares."""

    max_grad_norm: Rate = 1.0
    """gradients are clipped to this norm"""
    warmup_ratio: Fraction = 0.05
    """share of the steps in which the learning rate rises"""
    save_every: Positive = 100
    """resumable state, in steps"""

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> Self:
        if self.batch_size % self.micro_batch_size:
            raise mistake("batch_size", self.batch_size, f"a multiple of micro_batch_size, {self.micro_batch_size}")
        return self


class Supervised(Stage):
    """What SFT and reward models share."""

    max_steps: Positive | None = None
    """optimizer steps; comes before `epochs`, one of the two is needed"""
    epochs: Rate | None = None
    """passes over the rows"""
    lr_schedule: Schedule = "cosine"
    """of the learning rate, after the warm-up"""
    weight_decay: NonNegative = 0.0
    """AdamW's"""
    max_length: Positive | None = None
    """tokens of prompt and answer; null: the model's context"""
    seed: Count = 0
    """of the order of rows, and of a reward model's head"""

    @model_validator(mode="after")
    def _has_a_length(self) -> Self:
        if self.max_steps is None and self.epochs is None:
            raise mistake("max_steps", None, "given, or epochs instead")
        return self


class Sft(Supervised):
    """Supervised fine-tuning of the base model."""

    loss_on: Literal["completion", "all"] = "completion"
    """the tokens that are learned: the answer's, or the prompt's too"""


class Scale(Settings):
    """The unit of a reward model's scores, whether it was trained here or published."""

    normalise: bool = True
    """scores are those of the SFT model's responses minus their mean, over their standard deviation; false: raw"""


class TrainedReward(Supervised, Scale):
    """A Bradley–Terry reward model, from the SFT model."""

    source: Literal["train"]
    """trained here, on the preferences"""


class Scoring(Settings):
    """What the rewards of pairs depend on, of the `offline` section."""

    micro_batch_size: Positive
    """per device and forward pass"""
    max_length: Positive
    """tokens of prompt and response; longer responses are cut"""


class ScaleSamples(Settings):
    """What the scale of a published reward model depends on, of the `online` section."""

    micro_batch_size: Positive
    """per device and forward pass"""
    temperature: Rate
    """of the responses"""
    top_p: Fraction
    """nucleus of the responses"""
    max_prompt_length: Positive
    """tokens; longer prompts are left out"""
    max_new_tokens: Positive
    """tokens of a response"""


class Reference(Scoring):
    """What reference log-probs depend on, of the `offline` section."""

    precision: Precision
    """of forward passes"""


class Offline(Stage):
    """DPO and its family; a run may override any key. Defaults: TRL's, but for the warm-up."""

    max_steps: Positive
    """optimizer steps"""
    lr_schedule: Schedule = "linear"
    """of the learning rate, after the warm-up"""
    weight_decay: NonNegative = 0.01
    """AdamW's"""
    max_length: Positive = 1024
    """tokens of prompt and response; longer responses are cut"""
    checkpoints: Steps
    """steps whose model is kept, probed and evaluated"""

    @model_validator(mode="after")
    def _checkpoints_in_time(self) -> Self:
        check_checkpoints(self.checkpoints, self.max_steps)
        return self


def check_checkpoints(steps: tuple[int, ...], last: int) -> None:
    """Refuses checkpoints after the last step."""
    if steps[-1] > last:
        raise mistake("checkpoints", steps[-1], f"at most max_steps, {last}")

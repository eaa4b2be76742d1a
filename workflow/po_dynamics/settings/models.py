"""Models: where the base and the reward model come from, and how each stage trains."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from po_dynamics.settings.base import Count, Positive, Rate, Settings, Sha256, mistake
from po_dynamics.settings.online import Online
from po_dynamics.settings.training import Offline, Scale, Sft, TrainedReward


class WorldBase(Settings):
    """The embedded world's base model; the default sizes are the demo's."""

    source: Literal["world"]
    """pre-trained here"""
    hidden_size: Positive = 96
    """a multiple of `heads`"""
    layers: Positive = 2
    """transformer blocks"""
    heads: Positive = 4
    """of the attention"""
    intermediate_size: Positive = 384
    """of the feed-forward blocks"""
    max_length: Positive = 128
    """context, tokens"""
    steps: Positive = 800
    """optimizer steps"""
    batch_size: Positive = 48
    """documents of an optimizer step"""
    learning_rate: Rate = 3e-3
    """its peak"""
    save_every: Positive = 100
    """resumable state, in steps"""
    seed: Count = 0
    """of the weights and of the order of documents"""

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        if self.hidden_size % self.heads:
            raise mistake("hidden_size", self.hidden_size, f"a multiple of heads, {self.heads}")
        return self


class HubModel(Settings):
    """A published model, or a local folder."""

    source: Literal["hub"]
    """published, or a local folder"""
    name: str
    """a hub model or a local folder"""
    revision: str | None = None
    """commit, tag or branch on the hub; null: the newest, which `source.json` in the folder names"""
    sha256: Sha256 | None = None
    """of all files as published, as `source.json` states it; null: not checked, but recorded"""


class HubBase(HubModel):
    """A published base model, or a local folder."""

    parameters: Positive
    """how many it has; devices, memory and time of its jobs follow from it"""


class HubReward(HubModel, Scale):
    """A published reward model, or a local folder."""

    parameters: Positive | None = None
    """how many it has, for the resources of jobs; null: as many as the base model"""


class Resources(Settings):
    """What jobs of a stage ask for, instead of what follows from the number of parameters."""

    gpu: Count | None = None
    """devices; null: as follows"""
    mem_mb: Positive | None = None
    """of the host, MB; null: as follows"""
    runtime: Positive | None = None
    """minutes; null: as follows"""


JobStage = Literal["download", "sft", "reward", "reference", "offline", "online", "generate", "probe"]


class Model(Settings):
    """A base model and all that is trained from it."""

    base: Annotated[WorldBase | HubBase, Field(discriminator="source")]
    """the base model"""
    sft: Sft
    """supervised fine-tuning of the base model"""
    reward: Annotated[TrainedReward | HubReward, Field(discriminator="source")]
    """the reward model; a published one's architecture tells how it is read"""
    offline: Offline
    """training of DPO and its family"""
    online: Online
    """training of PPO and its family"""
    preference_rewards: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")] | None = None
    """scores both responses of pairs for objectives of rewards, a "module:function"; null: the reward model"""
    resources: dict[JobStage, Resources] = Field(default_factory=dict)
    """by stage: download, sft, reward, reference, offline, online, generate or probe"""

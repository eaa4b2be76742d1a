"""The probe: G, scores and norms of every checkpoint of a probed run; and its validation by retraining."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from po_dynamics.settings.base import Count, Distinct, Positive, Rate, Settings, Steps

FinalSets = Distinct[Literal["heldout", "train"]]


class ProbeBatches(Settings):
    """Samples of a mini-batch, whose gradients are measured together."""

    offline: Positive = 4
    """pairs"""
    online: Positive = 6
    """roll-outs"""


class ProbeFinalSets(Settings):
    """Where the prompts of D′ are from: held out, or those of training."""

    offline: FinalSets = ("heldout", "train")
    """the paper's Figure 7b needs `train` for DPO"""
    online: FinalSets = ("heldout",)
    """of PPO and its family"""


class ProbeSamples(Settings):
    """How many samples G is the mean of, on each side."""

    train: Annotated[int, Field(ge=2)] = 500
    """of D: pairs offline, roll-outs online"""
    rollouts: Annotated[int, Field(ge=2)] | None = None
    """of D online, whose advantages are noisier than labels; null: as many as `train`"""
    final: Annotated[int, Field(ge=2)] = 500
    """of D′: final responses"""


Separate = Distinct[Literal["POS", "NEG", "TOP", "MID", "BOT"]]


class ProbeSeparate(Settings):
    """Components with gradients of their own, and so intervals over D′ too, norms, cosines and segments.

    POS and NEG, or all five. Each costs a gradient of memory; online, where a response has tokens of several, also a
    backward pass.
    """

    offline: Separate = ("POS", "NEG")
    """of DPO and its family"""
    online: Separate = ("POS", "NEG")
    """of PPO and its family"""


class Probe(Settings):
    """What is measured at every checkpoint of a probed run; see docs/probe.md."""

    samples: ProbeSamples = ProbeSamples()
    """how many, of D and of D′"""
    batch_size: ProbeBatches = ProbeBatches()
    """samples of a mini-batch"""
    final_sets: ProbeFinalSets = ProbeFinalSets()
    """prompts of D′"""
    separate: ProbeSeparate = ProbeSeparate()
    """components with gradients of their own"""
    norms: Positive | None = None
    """samples of D whose mini-batches get norms by component, cosines and segments; null: all"""
    predict: bool = True
    """also scores and drifts along AdamW's steps, which the test whether G predicts needs"""
    audits: Count = 2
    """mini-batches that plain autograd checks"""
    precision: Literal["fp32", "fp64"] = "fp32"
    """of the whole probe"""
    tolerance: Rate | None = None
    """largest relative difference of forward and reverse mode; null: what the precision allows"""
    seed: Count = 0
    """of the draw of samples"""


class Halves(Settings):
    """Trainings on random halves of the preference pairs, for the linear datamodelling score."""

    run: str
    """a probed run of DPO; `probe.samples` must cover all pairs; its first seed is the full training"""
    subsets: Annotated[int, Field(ge=3)] = 40
    """halves, one training each"""
    subsets_per_job: Positive = 10
    """trainings of one job"""
    seed: Count = 0
    """of the draw of halves"""


class Validation(Settings):
    """Trainings that leave something out, to hold G against; see docs/validation.md."""

    left_out: Annotated[dict[str, Steps], Field(min_length=1)]
    """probed runs of DPO or PPO, and their checkpoints from which the interval to the next one is trained again"""
    halves: Halves
    """of the preference pairs"""

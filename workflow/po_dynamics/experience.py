"""From prompts to experience: roll-outs, scores, log-probs, values, advantages (being written; the signature stands)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor


class RolloutSample(NamedTuple):
    """One fresh roll-out; tensors are float32 on the CPU, R = len(response_ids), entry t belongs to response token t."""

    id: str  # of the prompt
    prompt_ids: list[int]
    response_ids: list[int]  # up to and including EOS, where the response ended
    ended: bool
    reward: float  # normalised score, missing-EOS penalty included
    logps_R: Tensor  # nats, at the training temperature, full softmax
    ref_logps_R: Tensor  # nats, of the SFT model
    values_R: Tensor  # the checkpoint's own critic, before each token
    raw_advantages_R: Tensor  # GAE
    advantages_R: Tensor  # whitened over all tokens of the n roll-outs (masked, Bessel)


def fresh_rollouts(
    checkpoint: Path,
    reference: Path,
    reward: str | Path,
    prompts: Path,
    n: int,
    settings: Mapping[str, Any],
    seed: int,
) -> list[RolloutSample]:
    """n roll-outs at `checkpoint` (a step-<t>/ folder of PPO, with critic/), scored as in training.

    `reference` is the SFT model; `reward` a reward-model folder or "module:function"; `prompts` the preferences.parquet
    that training used (column `prompt`, messages); `settings` is models.<m>.online. Deterministic for a seed; dropout
    off; fp32. Raises InputError where a folder, a column or the critic is missing.
    """
    raise NotImplementedError

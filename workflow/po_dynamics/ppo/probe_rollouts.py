"""Fresh roll-outs of a checkpoint for the probe, made as training makes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from po_dynamics.data.tokens.table import open_prompts
from po_dynamics.errors import InputError
from po_dynamics.models import reward_models
from po_dynamics.models.critic import Critic
from po_dynamics.models.loading import default_device, load_model
from po_dynamics.models.sampling import mix
from po_dynamics.models.tokenizers import load_tokenizer
from po_dynamics.objectives.declaration import Objective
from po_dynamics.ppo.division import group_size
from po_dynamics.ppo.experience import (
    Experience,
    Models,
    Rollouts,
    Sources,
    epoch_order,
    evaluate,
    penalised_scores,
    roll_out,
    rollout_engine,
)
from po_dynamics.settings.online import Online


class RolloutSample(NamedTuple):
    """One fresh roll-out; tensors are float32 on the CPU, R = len(response_ids), entry t is of response token t."""

    id: str  # of the prompt
    prompt_ids: list[int]
    response_ids: list[int]  # up to and including EOS, where the response ended
    ended: bool
    reward: float  # normalised score, missing-EOS penalty included
    logps_R: Tensor  # nats, at the training temperature, full softmax
    ref_logps_R: Tensor  # nats, of the SFT model
    values_R: Tensor  # the checkpoint's own critic, before each token
    raw_advantages_R: Tensor  # GAE
    advantages_R: Tensor  # whitened over all tokens of the n roll-outs (masked, Bessel); both group-relative for grpo


def fresh_rollouts(
    sources: Sources, n: int, settings: Mapping[str, Any], seed: int, objective: Objective
) -> list[RolloutSample]:
    """n roll-outs of a checkpoint of PPO, `sources.policy`, with the engine, scores and advantages of its training.

    `settings` is models.<m>.online; `objective` tells how advantages are made: for a group-relative one, n must be a
    multiple of `rollouts_per_prompt`. Deterministic for a seed; dropout off; fp32. The KL coefficient is the one that
    the checkpoint stores, where it does, else that of the settings. Raises InputError where a folder, a column or the
    critic is missing.
    """
    checked = Online.of(settings, "online")
    repeats = group_size(checked, objective, n) or 1
    models = load_models(sources, checked)
    pool, _ = open_prompts(sources.prompts, checked.max_prompt_length)
    prompts = [pool[row] for row in epoch_order(len(pool), 0, n // repeats, mix(seed, 2)) for _ in range(repeats)]
    rollout = rollout_engine(models.policy, checked, models.tokenizer)  # type: ignore[arg-type]
    rollouts = roll_out(models, rollout, prompts, checked, (seed, 3))
    coefficient = kl_coefficient(sources.policy, checked.kl_coefficient)
    experience = evaluate(models, rollouts, checked, coefficient, group_size(checked, objective))
    return list(_samples(rollouts, penalised_scores(rollouts, checked), experience))


def load_models(sources: Sources, settings: Online) -> Models:
    """The models of a checkpoint of PPO, in float32, dropout off; InputError where it has no critic."""
    if not (sources.policy / "critic").is_dir():
        raise InputError(f"{sources.policy} has no critic/: it is not a checkpoint of PPO")
    device, tokenizer = default_device(), load_tokenizer(sources.policy)
    policy, reference = load_model(sources.policy), load_model(sources.reference)
    critic = Critic.from_pretrained(sources.policy / "critic").to(device).eval()
    scorer = reward_models.load(sources.reward, tokenizer, settings.micro_batch_size, device)
    return Models(policy, critic, reference, scorer, tokenizer)


def kl_coefficient(checkpoint: Path, default: float) -> float:
    """The KL coefficient stored beside a checkpoint's weights, else `default`."""
    path = checkpoint / "ppo.json"
    return float(json.loads(path.read_text())["kl_coefficient"]) if path.is_file() else default


def _samples(rollouts: Rollouts, rewards_B: Tensor, experience: Experience) -> Iterator[RolloutSample]:
    columns = (
        experience.old_logps_BT,
        experience.ref_logps_BT,
        experience.old_values_BT,
        experience.advantages.raw_BT,
        experience.advantages.whitened_BT,
    )
    for row, (prompt, response) in enumerate(zip(rollouts.prompts, rollouts.responses, strict=True)):
        mask_T = experience.batch.loss_mask_BT[row]
        parts = (column[row][mask_T].float().cpu() for column in columns)
        yield RolloutSample(prompt.id, prompt.ids, response.ids, response.ended, float(rewards_B[row]), *parts)

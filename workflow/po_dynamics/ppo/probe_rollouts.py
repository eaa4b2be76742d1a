"""Fresh roll-outs of a checkpoint for the probe, made as training makes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from po_dynamics.errors import InputError
from po_dynamics.models.batches import collate
from po_dynamics.models.critic import Critic
from po_dynamics.models.loading import default_device, load_model
from po_dynamics.models.sampling import CachedRollout, Response, Rollout, mix, row_uniforms
from po_dynamics.models.tokenizers import load_tokenizer
from po_dynamics.objectives.declaration import Objective
from po_dynamics.ppo.division import group_size
from po_dynamics.ppo.experience import (
    Experience,
    Prompt,
    all_logps,
    all_values,
    assess,
    epoch_order,
    last_columns,
    load_prompts,
    penalised,
    sampling_of,
    score_responses,
)
from po_dynamics.ppo.settings import PPOSettings


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
    checkpoint: Path,
    reference: Path,
    reward: str | Path,
    prompts: Path,
    n: int,
    settings: Mapping[str, Any],
    seed: int,
    objective: Objective,
) -> list[RolloutSample]:
    """n roll-outs at `checkpoint` (a step-<t>/ folder of PPO, with critic/), scored as in training.

    `reference` is the SFT model; `reward` a reward-model folder or "module:function"; `prompts` the preferences.parquet
    that training used (column `prompt`, messages); `settings` is models.<m>.online. Deterministic for a seed; dropout
    off; fp32. Raises InputError where a folder, a column or the critic is missing. The KL coefficient is the one of
    the settings, or the adaptive one of the checkpoint's `ppo.json`, where that is stored. `objective` tells how
    advantages are made; for a group-relative one, n must be a multiple of `rollouts_per_prompt`.
    """
    from po_dynamics.models import reward_models
    from po_dynamics.ppo import state

    options = PPOSettings.of(settings, "online")
    repeats = group_size(options, objective, n) or 1
    if not (checkpoint / "critic").is_dir():
        raise InputError(f"{checkpoint} has no critic/: it is not a checkpoint of PPO")
    device, tokenizer = default_device(), load_tokenizer(checkpoint)
    policy, reference_model = load_model(checkpoint), load_model(reference)
    critic = Critic.from_pretrained(checkpoint / "critic").to(device).eval()
    scorer = reward_models.load(reward, tokenizer, options.micro_batch_size, device)
    pool, _ = load_prompts(prompts, tokenizer, options.max_prompt_length)
    chosen = [pool[row] for row in epoch_order(len(pool), 0, n // repeats, mix(seed, 2)) for _ in range(repeats)]
    sampling = sampling_of(options, tokenizer)
    engine: Rollout = CachedRollout(policy, sampling, options.micro_batch_size * 4)
    responses = engine([prompt.ids for prompt in chosen], row_uniforms(n, sampling, (seed, 3)))
    scores_B = penalised(score_responses(scorer, chosen, responses, tokenizer), responses, options)
    batch = collate([p.ids for p in chosen], [r.ids for r in responses], sampling.pad_id).to(device)
    size, mask_BT = options.micro_batch_size, batch.loss_mask_BT
    experience = assess(
        batch,
        mask_BT,
        last_columns(batch),
        scores_B.to(device),
        all_logps(policy, batch, options.temperature, size),
        all_logps(reference_model, batch, options.temperature, size),
        all_values(critic, batch, mask_BT, size),
        options,
        state.kl_coefficient(checkpoint, options.kl_coefficient),
        group_size(options, objective),
    )
    return list(_samples(chosen, responses, scores_B, experience))


def _samples(
    prompts: Sequence[Prompt], responses: Sequence[Response], scores_B: Tensor, experience: Experience
) -> Iterator[RolloutSample]:
    columns = (
        experience.old_logps_BT,
        experience.ref_logps_BT,
        experience.old_values_BT,
        experience.advantages.raw_BT,
        experience.advantages.whitened_BT,
    )
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        mask_T = experience.batch.loss_mask_BT[row]
        parts = (column[row][mask_T].float().cpu() for column in columns)
        yield RolloutSample(prompt.id, prompt.ids, response.ids, response.ended, float(scores_B[row]), *parts)

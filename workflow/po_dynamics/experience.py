"""From prompts to experience: sampling, scores, log-probs, values and advantages of one roll-out batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from po_dynamics import advantages, objectives
from po_dynamics.advantages import Advantages
from po_dynamics.critic import Critic, token_values
from po_dynamics.errors import InputError
from po_dynamics.models import (
    Batch,
    collate,
    default_device,
    encode_prompt,
    load_model,
    load_tokenizer,
    token_logps,
)
from po_dynamics.ppo_settings import PPOSettings
from po_dynamics.rollout import CachedRollout, Response, Rollout, Sampling, in_step, mix, row_uniforms
from po_dynamics.scorers import Scorer


class Prompt(NamedTuple):
    """A prompt as messages and as the token ids that the policy reads."""

    id: str
    messages: list[dict[str, str]]
    ids: list[int]


class Experience(NamedTuple):
    """A roll-out batch, (B, T) like its `batch`; log-probs and values are those of before the update."""

    batch: Batch
    value_mask_BT: Tensor  # states with a value: the response's, and one more where the score sits after EOS
    old_logps_BT: Tensor
    ref_logps_BT: Tensor
    old_values_BT: Tensor
    advantages: Advantages
    quantiles: tuple[float, float] | None  # of |Â| over the whole batch

    def rows(self, rows: Sequence[int]) -> Experience:
        """Some rows, without the columns that none of them needs."""
        index = torch.as_tensor(rows, device=self.old_logps_BT.device)
        width = needed_width(self.value_mask_BT[index] | self.batch.loss_mask_BT[index])
        ids_BL, attention_BL, mask_BT = self.batch
        return Experience(
            unmasked(Batch(ids_BL[index, : width + 1], attention_BL[index, : width + 1], mask_BT[index, :width])),
            self.value_mask_BT[index, :width],
            self.old_logps_BT[index, :width],
            self.ref_logps_BT[index, :width],
            self.old_values_BT[index, :width],
            Advantages(*(part_BT[index, :width] for part_BT in self.advantages)),
            self.quantiles,
        )


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


def load_prompts(path: Path, tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[list[Prompt], int]:
    """Prompts of the parquet's `prompt` column, each once, and how many were left out as longer than `max_length`."""
    import pandas as pd

    if not path.is_file():
        raise InputError(f"{path}: no such file: it should hold the training prompts (column prompt)")
    table = pd.read_parquet(path)
    if missing := {"id", "prompt"} - set(table.columns):
        raise InputError(f"{path}: column {', '.join(sorted(missing))} is missing (found: {', '.join(table.columns)})")
    unique: dict[str, Prompt] = {}
    for id_, messages in zip(table["id"], table["prompt"], strict=True):
        messages = [dict(message) for message in messages]
        if (key := repr(messages)) not in unique:
            unique[key] = Prompt(str(id_), messages, encode_prompt(tokenizer, messages))
    kept = [prompt for prompt in unique.values() if len(prompt.ids) <= max_length]
    if not kept:
        raise InputError(
            f"{path}: none of {len(unique)} prompts has at most {max_length} tokens: raise max_prompt_length"
            if unique
            else f"{path}: there is no prompt in it"
        )
    return kept, len(unique) - len(kept)


def epoch_order(count: int, start: int, n: int, seed: int) -> list[int]:
    """Items start … start + n − 1 of an endless sequence of seeded permutations of `count` items."""
    order: list[int] = []
    for position in range(start // count, (start + n - 1) // count + 1):
        generator = torch.Generator().manual_seed(mix(seed, 1, position))
        order += torch.randperm(count, generator=generator).tolist()
    offset = start - start // count * count
    return order[offset : offset + n]


def chunks(batch: Batch, mask_BT: Tensor, size: int) -> Iterator[tuple[Tensor, Batch]]:
    """Rows of similar length, without the columns of predictions after the last that `mask_BT` wants of them."""
    for rows in similar_lengths(range(len(mask_BT)), lengths(mask_BT), size):
        index = torch.tensor(rows, device=mask_BT.device)
        width = needed_width(mask_BT[index])
        ids_BL, attention_BL, loss_mask_BT = (part[index] for part in batch)
        yield index, unmasked(Batch(ids_BL[:, : width + 1], attention_BL[:, : width + 1], loss_mask_BT[:, :width]))


def similar_lengths(rows: Sequence[int], lengths: Sequence[int], size: int) -> list[list[int]]:
    """Longest first, at most `size` rows together, none shorter than two thirds of the longest beside it.

    Padding costs as much as tokens; a forward pass has a price of its own, hence no finer division. Processes that must
    pass in step divide by `size` alone.
    """
    strict = not in_step()
    groups: list[list[int]] = []
    for row in sorted(rows, key=lambda row: -lengths[row]):
        shorter = bool(groups) and strict and 3 * lengths[row] < 2 * lengths[groups[-1][0]]
        if not groups or len(groups[-1]) == size or shorter:
            groups.append([])
        groups[-1].append(row)
    return groups


def lengths(mask_BT: Tensor) -> list[int]:
    """Columns up to the last one that each row wants."""
    columns_T = torch.arange(1, mask_BT.shape[1] + 1, device=mask_BT.device)
    return (mask_BT * columns_T).amax(1).tolist()


def unmasked(batch: Batch) -> Batch:
    """The same rows with every token attended to, where all are right-padded.

    A causal model's tokens never see what comes after them, and without a mask attention takes its fastest kernel.
    """
    right_padded = bool((batch.attention_mask_BL.diff(dim=1) <= 0).all())
    return batch._replace(attention_mask_BL=torch.ones_like(batch.attention_mask_BL)) if right_padded else batch


def needed_width(mask_BT: Tensor) -> int:
    """Columns up to the last one that any row wants, at least one."""
    wanted_T = mask_BT.any(0).nonzero()
    return int(wanted_T[-1]) + 1 if len(wanted_T) else 1


def all_logps(model: Any, batch: Batch, temperature: float, size: int) -> Tensor:
    """`token_logps` of all rows without gradient, (B, T), by the code path of the update."""
    logps_BT = torch.zeros(batch.loss_mask_BT.shape, dtype=torch.float32, device=batch.input_ids_BL.device)
    with torch.no_grad():
        for rows, part in chunks(batch, batch.loss_mask_BT, size):
            part_BT = token_logps(model, part, temperature)
            logps_BT = logps_BT.to(torch.promote_types(logps_BT.dtype, part_BT.dtype))
            logps_BT[rows, : part_BT.shape[1]] = part_BT
    return logps_BT


def all_values(critic: nn.Module, batch: Batch, mask_BT: Tensor, size: int) -> Tensor:
    """`token_values` of all rows without gradient, (B, T)."""
    values_BT = torch.zeros(mask_BT.shape, dtype=torch.float32, device=batch.input_ids_BL.device)
    with torch.no_grad():
        for rows, part in chunks(batch, mask_BT, size):
            part_BT = token_values(critic, part, mask_BT[rows, : part.loss_mask_BT.shape[1]])
            values_BT = values_BT.to(torch.promote_types(values_BT.dtype, part_BT.dtype))
            values_BT[rows, : part_BT.shape[1]] = part_BT
    return values_BT


def last_columns(batch: Batch) -> Tensor:
    """Column of the last response token of right-padded rows, (B,)."""
    return batch.attention_mask_BL.sum(1) - 2


def assess(
    batch: Batch,
    value_mask_BT: Tensor,
    score_columns_B: Tensor,
    scores_B: Tensor,
    logps_BT: Tensor,
    ref_logps_BT: Tensor,
    values_BT: Tensor,
    settings: PPOSettings,
    kl_coefficient: float,
    group_size: int | None = None,
) -> Experience:
    """Rewards, whitened GAE (with a `group_size`: group-relative advantages) and quantiles of a gathered batch."""
    kl_BT = advantages.kl_estimate(logps_BT, ref_logps_BT, settings.kl_estimator)
    rewards_BT = advantages.token_rewards(kl_BT, scores_B, score_columns_B, kl_coefficient)
    mask_BT = batch.loss_mask_BT
    estimated = advantages.estimate(
        rewards_BT, values_BT, mask_BT, value_mask_BT, settings.gamma, settings.gae_lambda, settings.whiten_rewards
    )
    if group_size is not None:
        estimated = advantages.group_relative(estimated, rewards_BT, mask_BT, group_size)
    weights = estimated.whitened_BT[mask_BT].abs()
    cuts = objectives.thresholds(weights) if len(weights) else None
    quantiles = (float(cuts[0]), float(cuts[1])) if cuts else None
    return Experience(batch, value_mask_BT, logps_BT, ref_logps_BT, values_BT, estimated, quantiles)


def score_responses(
    scorer: Scorer, prompts: Sequence[Prompt], responses: Sequence[Response], tokenizer: PreTrainedTokenizerBase
) -> Tensor:
    """Scores of the responses, (B,)."""
    texts = tokenizer.batch_decode([response.ids for response in responses], skip_special_tokens=True)
    ids = [response.ids for response in responses]
    return scorer([prompt.messages for prompt in prompts], texts, [prompt.ids for prompt in prompts], ids)


def sampling_of(settings: PPOSettings, tokenizer: PreTrainedTokenizerBase) -> Sampling:
    """The sampling law of the settings, for a tokenizer with a pad token of its own."""
    eos, pad = int(tokenizer.eos_token_id), int(tokenizer.pad_token_id)
    return Sampling(settings.max_new_tokens, (eos,), pad, settings.temperature, settings.top_p)


def fresh_rollouts(
    checkpoint: Path,
    reference: Path,
    reward: str | Path,
    prompts: Path,
    n: int,
    settings: Mapping[str, Any],
    seed: int,
    objective: str = "ppo",
) -> list[RolloutSample]:
    """n roll-outs at `checkpoint` (a step-<t>/ folder of PPO, with critic/), scored as in training.

    `reference` is the SFT model; `reward` a reward-model folder or "module:function"; `prompts` the preferences.parquet
    that training used (column `prompt`, messages); `settings` is models.<m>.online. Deterministic for a seed; dropout
    off; fp32. Raises InputError where a folder, a column or the critic is missing. The KL coefficient is the one of
    the settings, or the adaptive one of the checkpoint's `ppo.json`, where that is stored. `objective` tells how
    advantages are made; for a group-relative one, n must be a multiple of `rollouts_per_prompt`.
    """
    from po_dynamics import ppo_state, scorers

    options = PPOSettings.of(settings)
    repeats = options.group_size(objective, n) or 1
    if not (checkpoint / "critic").is_dir():
        raise InputError(f"{checkpoint} has no critic/: it is not a checkpoint of PPO")
    device, tokenizer = default_device(), load_tokenizer(checkpoint)
    policy, reference_model = load_model(checkpoint), load_model(reference)
    critic = Critic.from_pretrained(checkpoint / "critic").to(device).eval()
    scorer = scorers.load(reward, tokenizer, options.micro_batch_size, device)
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
        ppo_state.kl_coefficient(checkpoint, options.kl_coefficient),
        options.group_size(objective),
    )
    return list(_samples(chosen, responses, scores_B, experience))


def penalised(scores_B: Tensor, responses: Sequence[Response], settings: PPOSettings) -> Tensor:
    """Scores after the missing-EOS penalty."""
    ended_B = torch.tensor([response.ended for response in responses])
    return advantages.penalise_missing_eos(scores_B, ended_B, settings.missing_eos_penalty)


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

"""From prompts to experience: sampling, scores, log-probs, values and advantages of one roll-out batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from po_dynamics.errors import InputError
from po_dynamics.models.batches import Batch, chunks, needed_width, token_logps, unmasked
from po_dynamics.models.critic import token_values
from po_dynamics.models.reward_models import Scorer
from po_dynamics.models.sampling import Response, Sampling, mix
from po_dynamics.models.tokenizers import encode_prompt
from po_dynamics.objectives.components import thresholds
from po_dynamics.ppo import advantages
from po_dynamics.ppo.advantages import Advantages
from po_dynamics.ppo.settings import PPOSettings


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
    cuts = thresholds(weights) if len(weights) else None
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


def penalised(scores_B: Tensor, responses: Sequence[Response], settings: PPOSettings) -> Tensor:
    """Scores after the missing-EOS penalty."""
    ended_B = torch.tensor([response.ended for response in responses])
    return advantages.penalise_missing_eos(scores_B, ended_B, settings.missing_eos_penalty)

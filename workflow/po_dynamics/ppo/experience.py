"""From prompts to experience, in the order in which it happens.

Prompts → responses → scores (`roll_out`) → log-probs and values → rewards → advantages (`evaluate`). The trainer and
the probe's fresh roll-outs both go this way. Of several processes each takes its share of the rows; all get everything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from po_dynamics.data.tokens.table import Prompt
from po_dynamics.models.batches import Batch, chunks, collate, needed_width, token_logps, unmasked
from po_dynamics.models.critic import token_values
from po_dynamics.models.reward_models import Scorer
from po_dynamics.models.sampling import Response, Rollout, Sampling, engine, mix, row_uniforms
from po_dynamics.models.vllm import VLLMRollout
from po_dynamics.objectives.components import thresholds
from po_dynamics.ppo import advantages
from po_dynamics.ppo.advantages import Advantages
from po_dynamics.settings.online import Online
from po_dynamics.storage import sharding
from po_dynamics.storage.distributed import gathered_items, gathered_rows, share


class Sources(NamedTuple):
    """What PPO reads."""

    policy: Path  # a model folder; with critic/ inside where it is a checkpoint of PPO
    reward: str | Path  # a reward-model folder or "module:function"
    reference: Path  # the model of the KL penalty
    prompts: Path  # a table of tokens, whose prompts are used, each once


class Models(NamedTuple):
    """The models of PPO, the policy's tokenizer, and the precision under which all but the scorer pass forward."""

    policy: nn.Module
    critic: nn.Module
    reference: nn.Module
    scorer: Scorer
    tokenizer: PreTrainedTokenizerBase
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext


def epoch_order(count: int, start: int, n: int, seed: int) -> list[int]:
    """Items start … start + n − 1 of an endless sequence of seeded permutations of `count` items."""
    order: list[int] = []
    for position in range(start // count, (start + n - 1) // count + 1):
        generator = torch.Generator().manual_seed(mix(seed, 1, position))
        order += torch.randperm(count, generator=generator).tolist()
    offset = start - start // count * count
    return order[offset : offset + n]


# --------------------------------------------------------------------------------------------- responses and scores


class Rollouts(NamedTuple):
    """The responses of a global batch, from all processes; scores are the reward source's own."""

    prompts: list[Prompt]
    responses: list[Response]
    scores_B: Tensor


def sampling_law(settings: Online, tokenizer: PreTrainedTokenizerBase) -> Sampling:
    """The sampling law of the settings, for a tokenizer with a pad token of its own."""
    eos, pad = int(tokenizer.eos_token_id), int(tokenizer.pad_token_id)
    return Sampling(settings.max_new_tokens, (eos,), pad, settings.temperature, settings.top_p)


def rollout_engine(model: PreTrainedModel, settings: Online, tokenizer: PreTrainedTokenizerBase) -> Rollout:
    """The engine that the settings name, sampling from the model as it is at each call."""
    law = sampling_law(settings, tokenizer)
    if settings.rollout == "vllm":

        def save(folder: Path) -> None:
            model.save_pretrained(folder, state_dict=sharding.weights(model, everywhere=True))
            tokenizer.save_pretrained(folder)

        return VLLMRollout(save, law)
    # Decoding holds no activations: four times the training micro-batch fits.
    return engine(settings.rollout, model, law, 4 * settings.micro_batch_size)


def roll_out(
    models: Models, rollout: Rollout, prompts: list[Prompt], settings: Online, seed: Sequence[int]
) -> Rollouts:
    """Samples a response to each prompt, with random numbers that belong to its row, and scores it."""
    mine, law = share(len(prompts)), sampling_law(settings, models.tokenizer)
    uniforms_BR = row_uniforms(len(prompts), law, seed)
    with models.autocast():
        responses = rollout([prompt.ids for prompt in prompts[mine]], uniforms_BR[mine])
    scores_B = score_responses(models, prompts[mine], responses)
    return Rollouts(prompts, gathered_items(responses), torch.tensor(gathered_items(scores_B.tolist())))


def score_responses(models: Models, prompts: Sequence[Prompt], responses: Sequence[Response]) -> Tensor:
    """The reward source's scores of the responses, (B,)."""
    ids = [response.ids for response in responses]
    texts = models.tokenizer.batch_decode(ids, skip_special_tokens=True)
    return models.scorer([prompt.messages for prompt in prompts], texts, [prompt.ids for prompt in prompts], ids)


def penalised_scores(rollouts: Rollouts, settings: Online) -> Tensor:
    """Scores after the missing-EOS penalty, (B,)."""
    ended_B = torch.tensor([response.ended for response in rollouts.responses])
    return advantages.penalise_missing_eos(rollouts.scores_B, ended_B, settings.missing_eos_penalty)


# ------------------------------------------------------------------------- log-probs and values, rewards, advantages


class Experience(NamedTuple):
    """A roll-out batch, (B, T) like its `batch`; log-probs and values are those of before the update."""

    batch: Batch
    old_logps_BT: Tensor
    ref_logps_BT: Tensor
    old_values_BT: Tensor
    advantages: Advantages
    quantiles: tuple[float, float] | None  # of |Â| over the whole batch

    def rows(self, rows: Sequence[int]) -> Experience:
        """Some rows, without the columns that none of them needs."""
        index = torch.as_tensor(rows, device=self.old_logps_BT.device)
        ids_BL, attention_BL, mask_BT = self.batch
        width = needed_width(mask_BT[index])
        return Experience(
            unmasked(Batch(ids_BL[index, : width + 1], attention_BL[index, : width + 1], mask_BT[index, :width])),
            self.old_logps_BT[index, :width],
            self.ref_logps_BT[index, :width],
            self.old_values_BT[index, :width],
            Advantages(*(part_BT[index, :width] for part_BT in self.advantages)),
            self.quantiles,
        )


def evaluate(
    models: Models, rollouts: Rollouts, settings: Online, kl_coefficient: float, group_size: int | None
) -> Experience:
    """From responses to advantages: log-probs of policy and reference, values, rewards, advantages.

    Each process passes its share of the rows forward; rewards and advantages come after gathering, of the whole batch.
    With a `group_size`, consecutive rows answer one prompt and their advantages compare them.
    """
    device, pad_id = next(models.policy.parameters()).device, int(models.tokenizer.pad_token_id)
    prompts, responses = [p.ids for p in rollouts.prompts], [r.ids for r in rollouts.responses]
    batch = collate(prompts, responses, pad_id).to(device)
    own, size = Batch(*(part[share(len(prompts))] for part in batch)), settings.micro_batch_size
    with models.autocast():
        columns = (
            all_logps(models.policy, own, settings.temperature, size),
            all_logps(models.reference, own, settings.temperature, size),
            all_values(models.critic, own, size),
        )
    logps_BT, ref_logps_BT, values_BT = (gathered_rows(column_BT) for column_BT in columns)

    kl_BT = advantages.kl_estimate(logps_BT, ref_logps_BT, settings.kl_estimator)
    scores_B = penalised_scores(rollouts, settings).to(device)
    rewards_BT = advantages.token_rewards(kl_BT, scores_B, last_columns(batch), kl_coefficient)
    estimation = settings.gamma, settings.gae_lambda, settings.whiten_rewards
    estimated = advantages.estimate(rewards_BT, values_BT, batch.loss_mask_BT, *estimation, group_size)
    quantiles = weight_quantiles(estimated.whitened_BT, batch.loss_mask_BT)
    return Experience(batch, logps_BT, ref_logps_BT, values_BT, estimated, quantiles)


def all_logps(model: Any, batch: Batch, temperature: float, size: int) -> Tensor:
    """`token_logps` of all rows without gradient, (B, T)."""
    return all_rows(lambda part: token_logps(model, part, temperature), batch, size)


def all_values(critic: nn.Module, batch: Batch, size: int) -> Tensor:
    """`token_values` of all rows without gradient, (B, T)."""
    return all_rows(lambda part: token_values(critic, part), batch, size)


def all_rows(forward: Callable[[Batch], Tensor], batch: Batch, size: int) -> Tensor:
    """What `forward` gives for all rows, at most `size` at a time and without gradient, (B, T)."""
    columns_BT = torch.zeros(batch.loss_mask_BT.shape, dtype=torch.float32, device=batch.input_ids_BL.device)
    with torch.no_grad():
        for rows, part in chunks(batch, batch.loss_mask_BT, size):
            part_BT = forward(part)
            columns_BT = columns_BT.to(torch.promote_types(columns_BT.dtype, part_BT.dtype))
            columns_BT[rows, : part_BT.shape[1]] = part_BT
    return columns_BT


def last_columns(batch: Batch) -> Tensor:
    """Column of the last response token of right-padded rows, (B,)."""
    return batch.attention_mask_BL.sum(1) - 2


def weight_quantiles(advantages_BT: Tensor, mask_BT: Tensor) -> tuple[float, float] | None:
    """Quantiles of |Â| over the response tokens of a whole batch; None where there is no token."""
    weights = advantages_BT[mask_BT].abs()
    cuts = thresholds(weights) if len(weights) else None
    return (float(cuts[0]), float(cuts[1])) if cuts else None

"""Rewards of both responses of every preference pair, for the objectives that read them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from transformers import AutoConfig

from po_dynamics.data.preferences import Pairs
from po_dynamics.errors import InputError
from po_dynamics.models import reward_models
from po_dynamics.models.loading import check_folder, default_device, usable_length
from po_dynamics.models.tokenizers import load_tokenizer
from po_dynamics.settings.training import Scoring
from po_dynamics.storage.parquet import write_table


def score_preferences(
    model: Path, preferences: Path, source: str | Path, output: Path, settings: Mapping[str, Any] | Scoring
) -> None:
    """Writes `id, chosen_reward, rejected_reward` of every pair, of the tokens that training sees.

    Args:
        model: the SFT model, whose tokenizer spells the responses.
        preferences: what `tokenise` wrote, of this model.
        source: a reward model's folder, whose scores are normalised where it stores a normalisation, or
            "module:function".
        settings: those of `models.<model>.offline` that matter; the pairs are those that `train_offline` sees.

    Raises:
        InputError: an unusable table or source, rewards that are not finite.
    """
    settings = Scoring.of(settings, "offline")
    check_folder(model)
    tokenizer = load_tokenizer(model)
    pairs = Pairs(preferences, usable_length(AutoConfig.from_pretrained(model), settings.max_length))
    encoded = list(pairs)
    scorer = reward_models.load(source, tokenizer, 2 * settings.micro_batch_size, default_device())
    prompts = [pairs.table.messages(row) for row in pairs.rows] * 2
    responses = [pair.chosen_ids for pair in encoded] + [pair.rejected_ids for pair in encoded]
    texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
    rewards = scorer(prompts, texts, [pair.prompt_ids for pair in encoded] * 2, responses)
    if bad := (~torch.isfinite(rewards)).nonzero().flatten().tolist():
        raise InputError(
            f"{source}: the reward of {encoded[bad[0] % len(encoded)].id} is not finite ({len(bad)} responses)"
        )
    chosen, rejected = rewards.double().chunk(2)
    table = {"id": pairs.ids, "chosen_reward": chosen.numpy(), "rejected_reward": rejected.numpy()}
    write_table(pa.table(table), output)

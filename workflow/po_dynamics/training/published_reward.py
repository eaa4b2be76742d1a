"""The scale of a published reward model: what a trained one measures after its training."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from po_dynamics.data.tokens.table import open_prompts
from po_dynamics.models import reward_models
from po_dynamics.models.critic import fit_normalisation
from po_dynamics.models.loading import NORMALISATION, default_device, load_model
from po_dynamics.models.sampling import CachedRollout, Sampling, row_uniforms
from po_dynamics.models.tokenizers import load_tokenizer
from po_dynamics.settings.training import ScaleSamples
from po_dynamics.storage.atomic import atomic_folder, write_json

SAMPLES = 512  # responses of the SFT model, as of trained reward models


def normalise_reward(
    sft: Path, preferences: Path, published: Path, output: Path, settings: Mapping[str, Any] | ScaleSamples
) -> None:
    """Gives a published reward model the unit of a trained one: `output` is `published` with a `normalisation.json`.

    It holds mean and standard deviation of the raw scores of responses that the SFT model samples to prompts of the
    preferences, by the law of roll-outs. Files are hard links where the file system has them, not copies.

    Args:
        preferences: what `tokenise` wrote, of this model.
        settings: those of `models.<model>.online` that roll-outs follow.

    Raises:
        InputError: no prompt short enough, or scores that are all the same.
    """
    settings = ScaleSamples.of(settings, "online")
    tokenizer = load_tokenizer(sft)
    messages, prompts = _prompts(preferences, settings.max_prompt_length)
    ids = _responses(sft, tokenizer, prompts, settings)
    scorer = reward_models.load(published, tokenizer, settings.micro_batch_size, default_device())
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    scale = fit_normalisation(scorer(messages, texts, prompts, ids))
    with atomic_folder(output) as temporary:
        for file in published.iterdir():
            if file.is_file() and file.name != NORMALISATION:
                _link(file, temporary / file.name)
        write_json(temporary / NORMALISATION, scale)


def _prompts(preferences: Path, longest: int) -> tuple[list[list[dict[str, str]]], list[list[int]]]:
    """Messages and token ids of SAMPLES prompts, drawn at random; again from the start where there are fewer."""
    pool, _ = open_prompts(preferences, longest)
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0)).tolist()
    chosen = [pool[index] for index in order[:SAMPLES]]
    repeated = [chosen[i % len(chosen)] for i in range(SAMPLES)]
    return [prompt.messages for prompt in repeated], [prompt.ids for prompt in repeated]


def _responses(
    sft: Path, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], settings: ScaleSamples
) -> list[list[int]]:
    policy = load_model(sft)
    eos, pad = int(tokenizer.eos_token_id), int(tokenizer.pad_token_id)
    law = Sampling(settings.max_new_tokens, (eos,), pad, settings.temperature, settings.top_p)
    uniforms_BR = row_uniforms(len(prompts), law, (0, SAMPLES))
    rollout = CachedRollout(policy, law, 4 * settings.micro_batch_size)
    return [response.ids for response in rollout(prompts, uniforms_BR)]


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)

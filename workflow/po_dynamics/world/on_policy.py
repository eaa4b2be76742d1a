"""Preference pairs sampled from the SFT model and labelled by the gold reward."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from po_dynamics.data.schema import COLUMNS, Row, write_rows
from po_dynamics.errors import InputError
from po_dynamics.settings.data import WorldData
from po_dynamics.storage.parquet import read_rows
from po_dynamics.world.datasets import labelled_pair, user_message

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def sample_preferences(model: Path, data: Path, output: Path, settings: Mapping[str, Any] | WorldData) -> None:
    """Writes the preference pairs of a model: those of the world's data set, and on-policy pairs.

    An on-policy pair is two distinct, complete samples (temperature 1) of `model` for a prompt of the data set,
    labelled by a Bradley–Terry draw from the gold reward. `data` is the folder of data sets, `settings` config `data`.
    """
    settings = WorldData.of(settings, "data")
    rows = read_rows(data / "preferences.parquet", ["id", *COLUMNS["preferences"]])
    prompts = [row["prompt"][-1]["content"] for row in rows]
    sampled = _on_policy_rows(model, prompts, settings) if settings.on_policy_preferences else []
    write_rows((*sampled, *rows), output, COLUMNS["preferences"])


def _on_policy_rows(folder: Path, prompts: list[str], settings: WorldData) -> list[Row]:
    from po_dynamics.models.loading import load_model
    from po_dynamics.models.tokenizers import load_tokenizer

    model, tokenizer = load_model(folder), load_tokenizer(folder)
    rng, wanted = random.Random(f"on-policy/{settings.seed}"), settings.on_policy_preferences
    rows: list[Row] = []
    with tqdm(total=wanted, desc="on-policy pairs", unit="pair", mininterval=5) as bar:
        for round_ in range(20):
            # Some pairs are equal or cut off; a few more prompts than pairs usually make up for them.
            chosen = rng.choices(prompts, k=round(1.1 * (wanted - len(rows))) + 8)
            answers = _sample_pairs(model, tokenizer, chosen, (settings.seed, round_))
            pairs = [(p, a) for p, a in zip(chosen, answers, strict=True) if a is not None]
            for prompt, pair in pairs[: wanted - len(rows)]:
                rows.append(labelled_pair(f"sampled-{len(rows):05d}", prompt, pair, settings.label_temperature, rng))
                bar.update()
            if len(rows) == wanted:
                return rows
    raise InputError(
        f"{folder}: only {len(rows)} of {wanted} pairs have two distinct, complete answers; train the SFT model for "
        f"longer, or lower data.on_policy_preferences"
    )


def _sample_pairs(
    model: PreTrainedModel, tokenizer: Any, prompts: list[str], seed: Sequence[int]
) -> list[tuple[str, str] | None]:
    """Two samples per prompt; None where they are equal, empty or not ended within 64 new tokens."""
    from po_dynamics.models.sampling import CachedRollout, Sampling, row_uniforms

    sampling = Sampling(max_new_tokens=64, eos_ids=(tokenizer.eos_token_id,), pad_id=tokenizer.pad_token_id)
    conversations = [user_message(prompt) for prompt in prompts for _ in range(2)]
    rendered = tokenizer.apply_chat_template(conversations, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    uniforms_BR = row_uniforms(len(ids), sampling, seed)
    responses = CachedRollout(model, sampling, batch_size=256)(ids, uniforms_BR)
    texts = [tokenizer.decode(response.ids[:-1]) if response.ended else "" for response in responses]
    pairs = zip(texts[::2], texts[1::2], strict=True)
    return [(a, b) if a and b and a != b else None for a, b in pairs]

"""What every stage needs in which policies answer prompts: a policy, prompts as token ids, and its divergence."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from po_dynamics.errors import InputError
from po_dynamics.models.batches import Batch
from po_dynamics.models.loading import context_length, load_model
from po_dynamics.models.tokenizers import encode_prompt, prepare_tokenizer, read_tokenizer
from po_dynamics.storage.parquet import read_rows


def load_policy(folder: Path, dtype: str) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """A model folder's tokenizer and model; a base model's tokenizer is prepared as for SFT, in memory."""
    tokenizer, model = read_tokenizer(folder), load_model(folder, dtype=dtype)
    prepare_tokenizer(tokenizer, model)  # changes nothing from the SFT stage on
    return tokenizer, model


def encode_prompts(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """The rows `id, prompt` of a table, with `prompt_ids`."""
    rows = read_rows(path, ["id", "prompt"])
    return [{**row, "prompt_ids": encode_prompt(tokenizer, row["prompt"])} for row in rows]


def draw_prompts(
    path: Path, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, max_new_tokens: int, n: int, seed: int
) -> tuple[list[dict[str, Any]], int]:
    """At most `n` rows of `encode_prompts`, drawn with `seed`, and how many prompts are too long to draw from.

    A prompt that several rows have is one prompt, under the id of its first row. InputError where none leaves room for
    `max_new_tokens` in the model's context.
    """
    pool = _each_once(encode_prompts(path, tokenizer))
    context = context_length(model) or sys.maxsize
    fitting = [row for row in pool if len(row["prompt_ids"]) + max_new_tokens <= context]
    if not fitting:
        raise InputError(f"{path}: no prompt leaves room for {max_new_tokens} tokens in {context}")
    order = torch.randperm(len(fitting), generator=torch.Generator().manual_seed(seed)).tolist()
    return [fitting[i] for i in order[:n]], len(pool) - len(fitting)


def _each_once(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first row of every prompt, in their order."""
    unique: dict[str, dict[str, Any]] = {}
    for row in rows:
        unique.setdefault(repr(row["prompt"]), row)
    return list(unique.values())


class Divergence(NamedTuple):
    """Of every response of a batch, (B,) in float64, nats."""

    kl_B: Tensor  # Σ_t KL(π(·|y_<t) ‖ π_ref(·|y_<t)): its mean over samples of π is KL(π ‖ π_ref) of responses
    logps_B: Tensor
    ref_logps_B: Tensor


def divergence(policy: PreTrainedModel, reference: PreTrainedModel, batch: Batch) -> Divergence:
    """Exact KL over the vocabulary, summed over the response tokens, and the response's log-probs."""
    mask_BT, log_probs = batch.loss_mask_BT, []
    for model in (policy, reference):
        output = model(input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask_BL, use_cache=False)
        log_probs.append(output.logits[:, :-1][mask_BT].float().log_softmax(-1))
    policy_NV, reference_NV = log_probs
    kl_N = (policy_NV.exp() * (policy_NV - reference_NV)).sum(-1).double()
    tokens_N1 = batch.input_ids_BL[:, 1:][mask_BT].unsqueeze(1)
    taken = (kl_N, *(part_NV.gather(1, tokens_N1).squeeze(1).double() for part_NV in log_probs))
    return Divergence(*(part_N.new_zeros(mask_BT.shape).masked_scatter(mask_BT, part_N).sum(1) for part_N in taken))

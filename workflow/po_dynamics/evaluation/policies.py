"""What every stage needs in which policies answer prompts: a policy, its prompts and its divergence."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from po_dynamics.data.tokens.table import Prompt, open_prompts
from po_dynamics.models.batches import Batch
from po_dynamics.models.loading import context_length, load_model
from po_dynamics.models.tokenizers import prepare_tokenizer, read_tokenizer


def load_policy(folder: Path, dtype: str) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """A model folder's tokenizer and model; a base model's tokenizer is prepared as for SFT, in memory."""
    tokenizer, model = read_tokenizer(folder), load_model(folder, dtype=dtype)
    prepare_tokenizer(tokenizer, model)  # changes nothing from the SFT stage on
    return tokenizer, model


def draw_prompts(
    path: Path, model: PreTrainedModel, max_new_tokens: int, n: int, seed: int
) -> tuple[list[Prompt], int]:
    """At most `n` prompts of a table of tokens, drawn with `seed`, and how many are too long to draw from.

    A prompt that several rows have is one prompt, under the id of its first row. InputError where none leaves room for
    `max_new_tokens` in the model's context.
    """
    longest = (context_length(model) or sys.maxsize) - max_new_tokens
    fitting, use = open_prompts(path, longest, "lower evaluation.max_new_tokens or that of the target")
    order = torch.randperm(len(fitting), generator=torch.Generator().manual_seed(seed)).tolist()
    return [fitting[i] for i in order[:n]], use.dropped["prompt too long"]


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

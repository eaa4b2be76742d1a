"""Token sequences and log-probabilities: the one code path that trains, rolls out and probes.

Shapes: B sequences, L tokens (right padded), T = L - 1 predictions; prediction t is of token t + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel


class Batch(NamedTuple):
    """Right-padded sequences; `loss_mask_BT` is True where the predicted token is of the response."""

    input_ids_BL: Tensor
    attention_mask_BL: Tensor
    loss_mask_BT: Tensor

    def to(self, device: torch.device | str) -> Batch:
        return Batch(*(tensor.to(device) for tensor in self))


def collate(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_id: int) -> Batch:
    """Right-pads prompt + response. Masks come from the lengths, never from `ids != pad_id`."""
    length = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    ids = torch.full((len(prompts), length), pad_id)
    attention = torch.zeros(len(prompts), length, dtype=torch.long)
    loss_mask = torch.zeros(len(prompts), length - 1, dtype=torch.bool)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        end = len(prompt) + len(response)
        ids[row, :end] = torch.tensor([*prompt, *response])
        attention[row, :end] = 1
        loss_mask[row, len(prompt) - 1 : end - 1] = True
    return Batch(ids, attention, loss_mask)


def token_logps(model: PreTrainedModel, batch: Batch, temperature: float = 1.0) -> Tensor:
    """log π(token t + 1 | tokens ≤ t), (B, T) in at least float32; 0 outside `loss_mask_BT`."""
    logits = model(
        input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask_BL, use_cache=False
    ).logits[:, :-1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    targets = batch.input_ids_BL[:, 1:].unsqueeze(-1)
    logps = logits.gather(-1, targets).squeeze(-1) - logits.logsumexp(-1)
    return logps.masked_fill(~batch.loss_mask_BT, 0.0)

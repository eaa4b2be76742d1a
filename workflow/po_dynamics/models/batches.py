"""Token sequences in batches, and log-probabilities: the one code path that trains, rolls out and probes.

Which rows share a forward pass is decided by one of three rules, all of which put the longest row first, so that an
out-of-memory error shows at once:

* `longest_first`: batches of a fixed size. For passes whose number must not depend on the lengths.
* `similar_lengths`: a batch also ends where rows get much shorter. For the passes of an update.
* `least_padding`: the division of least cost, padding against calls. For the probe, whose passes are long.

Shapes: B sequences, L tokens (right padded), T = L - 1 predictions; prediction t is of token t + 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from po_dynamics.storage.distributed import in_step


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
    logits = model(input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask_BL, use_cache=False).logits[:, :-1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    targets = batch.input_ids_BL[:, 1:].unsqueeze(-1)
    logps = logits.gather(-1, targets).squeeze(-1) - logits.logsumexp(-1)
    return logps.masked_fill(~batch.loss_mask_BT, 0.0)


# ------------------------------------------------------------------------------------- which rows share a forward pass


def longest_first(lengths: Sequence[int], size: int) -> list[list[int]]:
    """All rows in batches of `size` (the last may be smaller), longest first; ties keep their order."""
    order = _falling(range(len(lengths)), lengths)
    return [order[start : start + size] for start in range(0, len(order), size)]


def similar_lengths(rows: Iterable[int], lengths: Sequence[int], size: int) -> list[list[int]]:
    """Longest first, at most `size` rows together, none shorter than two thirds of the longest beside it.

    Padding costs as much as tokens; a forward pass has a price of its own, hence no finer division. Processes that must
    pass in step divide by `size` alone.
    """
    strict = not in_step()
    groups: list[list[int]] = []
    for row in _falling(rows, lengths):
        shorter = bool(groups) and strict and 3 * lengths[row] < 2 * lengths[groups[-1][0]]
        if not groups or len(groups[-1]) == size or shorter:
            groups.append([])
        groups[-1].append(row)
    return groups


def least_padding(
    rows: Iterable[int], lengths: Sequence[int], cost: float, budget: float = math.inf
) -> list[list[int]]:
    """Groups of least Σ (longest · rows + cost), longest first; each of one row or within `budget` padded tokens.

    `cost` is what a forward pass costs beside its arithmetic, in tokens.
    """
    order = _falling(rows, lengths)
    # Dynamic programming. In an optimal division every group is a run of the sorted rows. best[n] is the least cost of
    # the first n rows, cut[n] where the last group of that division starts; a group from `start` to `stop` pads to the
    # length of its first row, and adds itself to the best division of what comes before it.
    best, cut = [0.0], [0]
    for stop in range(1, len(order) + 1):
        options = []
        for start in range(stop - 1, -1, -1):
            tokens = lengths[order[start]] * (stop - start)
            if tokens > budget and start < stop - 1:
                break  # an earlier start would only make the group larger
            options.append((best[start] + tokens + cost, start))
        best.append(min(options)[0])
        cut.append(min(options)[1])
    groups, stop = [], len(order)
    while stop:
        groups.append(order[cut[stop] : stop])
        stop = cut[stop]
    return groups[::-1]


def _falling(rows: Iterable[int], lengths: Sequence[int]) -> list[int]:
    return sorted(rows, key=lambda row: -lengths[row])


# ------------------------------------------------------------------------------------------ parts of a batch, trimmed


def chunks(batch: Batch, mask_BT: Tensor, size: int) -> Iterator[tuple[Tensor, Batch]]:
    """Rows of similar length, without the columns of predictions after the last that `mask_BT` wants of them."""
    for rows in similar_lengths(range(len(mask_BT)), lengths(mask_BT), size):
        index = torch.tensor(rows, device=mask_BT.device)
        width = needed_width(mask_BT[index])
        ids_BL, attention_BL, loss_mask_BT = (part[index] for part in batch)
        yield index, unmasked(Batch(ids_BL[:, : width + 1], attention_BL[:, : width + 1], loss_mask_BT[:, :width]))


def select(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some rows of a batch, trimmed to the longest of them; the attention mask stays."""
    length = int(batch.attention_mask_BL[rows].sum(1).max())
    ids_BL, attention_BL, mask_BT = (tensor[rows] for tensor in batch)
    return Batch(ids_BL[:, :length], attention_BL[:, :length], mask_BT[:, : length - 1])


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


def left_pad(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask (B, C); the mask comes from the lengths."""
    width = max(map(len, prompts))
    ids_BC = torch.tensor([[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    lengths_B = torch.tensor([len(prompt) for prompt in prompts], device=device)
    mask_BC = torch.arange(width, device=device) >= width - lengths_B.unsqueeze(1)
    return ids_BC, mask_BC.long()

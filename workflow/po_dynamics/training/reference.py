"""Reference log-probabilities of preference pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from tqdm import tqdm

from po_dynamics.data.preferences import Pairs, read_of_pairs
from po_dynamics.errors import InputError
from po_dynamics.models.batches import collate, longest_first, token_logps
from po_dynamics.models.loading import load_model, usable_length
from po_dynamics.models.tokenizers import load_tokenizer
from po_dynamics.settings.training import Reference
from po_dynamics.storage.parquet import write_table


def compute_reference(model: Path, data: Path, output: Path, settings: Mapping[str, Any] | Reference) -> None:
    """Writes log π_ref of both responses of every pair: `id, ref_chosen_logp, ref_rejected_logp` (sums, nats).

    `data` is what `tokenise` wrote of this model, `settings` are those of `models.<model>.offline` that matter; the
    pairs are those that `train_offline` sees.
    """
    settings = Reference.of(settings, "offline")
    policy, pad = load_model(model), load_tokenizer(model).pad_token_id
    device = policy.device
    pairs = Pairs(data, usable_length(policy, settings.max_length))
    lengths = pairs.lengths.ravel().tolist()
    logps, batches = [0.0] * len(lengths), longest_first(lengths, 2 * settings.micro_batch_size)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        for indices in tqdm(batches, mininterval=5, desc="reference log-probs", unit="batch"):
            prompts, answers = zip(*(_response(pairs, i) for i in indices), strict=True)
            batch = collate(prompts, answers, pad).to(device)
            for i, logp in zip(indices, token_logps(policy, batch).double().sum(1).tolist(), strict=True):
                logps[i] = logp
    ids = pairs.ids
    if bad := [ids[i // 2] for i, logp in enumerate(logps) if not math.isfinite(logp)]:
        raise InputError(
            f"{model}: the log-prob of {bad[0]} is not finite ({len(bad)} responses); its weights are broken"
        )
    table = {"id": ids, "ref_chosen_logp": logps[::2], "ref_rejected_logp": logps[1::2]}
    write_table(pa.table(table), output)


def _response(pairs: Pairs, index: int) -> tuple[list[int], list[int]]:
    """Prompt and response of an even number: of a pair's chosen one; of the odd number after it: of the rejected."""
    pair = pairs[index // 2]
    return pair.prompt_ids, pair.rejected_ids if index % 2 else pair.chosen_ids


def read_reference(path: Path, ids: Sequence[str]) -> list[tuple[float, float]]:
    """(chosen, rejected) reference log-probs in the order of `ids`; InputError when one is missing."""
    return read_of_pairs(path, ids, ("ref_chosen_logp", "ref_rejected_logp"), "log-probs")

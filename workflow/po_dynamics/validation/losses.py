"""The negative log-likelihood of stored final responses, at any checkpoint."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

from po_dynamics.models.batches import collate, longest_first, token_logps
from po_dynamics.models.loading import load_model
from po_dynamics.models.tokenizers import load_tokenizer
from po_dynamics.storage.parquet import read_rows

BATCH_SIZE = 64


def response_losses(checkpoint: Path, final_responses: Path) -> pd.DataFrame:
    """`id, nll`: −log π(y′|x′) of every response of D′, summed over its tokens, in nats."""
    rows = read_rows(final_responses, ["id", "prompt_ids", "response_ids"])
    model, pad = load_model(checkpoint), load_tokenizer(checkpoint).pad_token_id
    losses = [0.0] * len(rows)
    with torch.inference_mode():
        for chosen in longest_first([len(row["prompt_ids"]) + len(row["response_ids"]) for row in rows], BATCH_SIZE):
            prompts, responses = ([rows[i][name] for i in chosen] for name in ("prompt_ids", "response_ids"))
            batch = collate(prompts, responses, int(pad)).to(model.device)
            for i, logp in zip(chosen, token_logps(model, batch).double().sum(1).tolist(), strict=True):
                losses[i] = -logp
    return pd.DataFrame({"id": [row["id"] for row in rows], "nll": losses})

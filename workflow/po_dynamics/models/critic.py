"""Token-level values of a sequence-classification model: the critic of PPO, and the pooled score of a reward model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from po_dynamics.errors import InputError
from po_dynamics.models.batches import Batch
from po_dynamics.models.loading import NORMALISATION, load_checked, turn_off_dropout


class Critic(nn.Module):
    """(head(hidden state) − mean) / std at every position.

    `mean` and `std` are fixed: the normalisation of the reward model that the critic starts from, so that the value
    of a complete response is, before training, exactly its normalised score.
    """

    def __init__(self, model: PreTrainedModel, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        self.model: Any = model
        self.mean, self.std = mean, std
        self._no_split_modules = getattr(model, "_no_split_modules", None)  # what sharding gathers one at a time
        model.config.score_mean, model.config.score_std = mean, std  # so that `model.save_pretrained` keeps them

    def forward(self, **inputs: Tensor) -> Tensor:
        """Values after each token, (B, L), in at least float32."""
        hidden_BLH = getattr(self.model, self.model.base_model_prefix)(**inputs, use_cache=False).last_hidden_state
        values_BL = self.model.score(hidden_BLH).squeeze(-1)
        values_BL = values_BL.to(torch.promote_types(values_BL.dtype, torch.float32))
        return (values_BL - self.mean) / self.std

    @classmethod
    def from_pretrained(cls, folder: Path, dtype: torch.dtype = torch.float32) -> Critic:
        """Reads a reward model or a saved critic, dropout off; InputError unless it is a complete one-label model.

        InputError also as in `load_checked`.
        """
        model = load_checked(AutoModelForSequenceClassification, folder, dtype, labels=1)
        return cls(model, *read_normalisation(folder))

    @classmethod
    def from_policy(cls, folder: Path) -> Critic:
        """The policy's backbone under a head of zeros: the start where no reward model of the same tokenizer exists."""
        config = AutoConfig.from_pretrained(folder, num_labels=1)
        turn_off_dropout(config)
        model = AutoModelForSequenceClassification.from_pretrained(folder, config=config, dtype=torch.float32)
        critic = cls(model)
        nn.init.zeros_(critic.model.score.weight)
        return critic


def read_normalisation(folder: Path) -> tuple[float, float]:
    """(mean, std) of the reward model's scores on SFT samples; (0, 1) where none is stored.

    A reward model has them in `normalisation.json`, a critic in its config (`score_mean`, `score_std`).
    """
    path = folder / NORMALISATION
    if path.is_file():
        stored = json.loads(path.read_text())
        mean, std = float(stored["mean"]), float(stored["std"])
    else:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        mean, std = float(config.get("score_mean", 0.0)), float(config.get("score_std", 1.0))
    if not (std > 0.0 and abs(mean) < float("inf")):
        raise InputError(f"{path}: mean {mean}, std {std}: std must be positive; fit the normalisation again")
    return mean, std


def fit_normalisation(raw_N: Tensor) -> dict[str, float]:
    """Mean and standard deviation of raw scores, for `normalisation.json`; InputError where they do not differ."""
    raw_N = raw_N.double()
    if not bool(raw_N.isfinite().all()) or float(raw_N.std()) == 0.0:
        raise InputError(
            "the scores of sampled responses are all the same or not finite: train the reward model longer, or take "
            "another"
        )
    return {"mean": float(raw_N.mean()), "std": float(raw_N.std()), "n": len(raw_N)}


def token_values(critic: nn.Module, batch: Batch) -> Tensor:
    """V of the state before each predicted token, (B, T); 0 outside `loss_mask_BT`."""
    values_BL = critic(input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask_BL)
    return values_BL[:, :-1].masked_fill(~batch.loss_mask_BT, 0.0)


def final_values(critic: nn.Module, batch: Batch) -> Tensor:
    """Value after the last token of each right-padded row, (B,): the last token by length, whatever its id."""
    values_BL = critic(input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask_BL)
    last_B = batch.attention_mask_BL.sum(1) - 1
    return values_BL.gather(1, last_B.unsqueeze(1)).squeeze(1)

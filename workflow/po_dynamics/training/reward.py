"""The reward model: a Bradley–Terry scorer trained from the SFT model with TRL's RewardTrainer."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from po_dynamics.data.order import ShuffledRows
from po_dynamics.data.tokens.table import TokenTable
from po_dynamics.errors import InputError
from po_dynamics.models.batches import collate, longest_first
from po_dynamics.models.critic import fit_normalisation
from po_dynamics.models.loading import (
    NORMALISATION,
    RAW,
    default_device,
    load_checked,
    load_model,
    turn_off_dropout,
    usable_length,
)
from po_dynamics.models.tokenizers import load_tokenizer
from po_dynamics.settings.training import TrainedReward
from po_dynamics.storage.checkpoints import publish
from po_dynamics.storage.distributed import is_first_process
from po_dynamics.storage.state import identity, open_state
from po_dynamics.training import arguments

HELD_OUT = 0.05  # share of the prompts whose pairs only measure accuracy
SAMPLES = 512  # responses of the SFT model that fix the scale of the scores


def train_reward(
    sft: Path, preferences: Path, output: Path, state: Path, settings: Mapping[str, Any] | TrainedReward
) -> None:
    """Trains −log σ(r(x, y⁺) − r(x, y⁻)); killed and called again, it ends in the same weights.

    Args:
        preferences: what `tokenise` wrote, of this model.
        output: a one-label sequence classifier with tokenizer, `training.csv`, `metrics.json` (accuracy on held-out
            prompts with its standard error, row counts), `normalisation.json` (mean and std of the raw scores of
            sampled responses of the SFT model; 0 and 1 where `normalise` is false).
        settings: `models.<model>.reward` of the configuration, source train.

    Raises:
        InputError: bad data or settings, before any training; a loss or gradient that is not finite.
    """
    settings = TrainedReward.of(settings, "reward")
    tokenizer = load_tokenizer(sft)
    untrained = new_classifier(sft, settings.seed)
    max_length = usable_length(untrained, settings.max_length)
    rows, dropped = Comparisons.of(preferences, max_length)
    train, held_out = split(rows, settings.seed)
    steps = arguments.total_steps(settings, len(train))
    run = {"settings": settings.resolved(), "sft": identity(sft), "preferences": identity(preferences)}
    if is_first_process():
        open_state(state, run)
    trainer = _trainer(untrained, tokenizer, train, settings, state, steps)

    trained = arguments.train(trainer, tokenizer, state, settings.save_every, "reward model")
    # Every process measures the same: on several, decoding waits for all of them in every step.
    model: Any = load_checked(AutoModelForSequenceClassification, trained, torch.float32, labels=1)
    model.to(default_device())
    metrics: dict[str, Any] = {
        "steps": steps,
        "global_batch": settings.batch_size,
        "dropped": dropped,
        "train": len(train),
    }
    metrics |= accuracy(model, tokenizer, held_out, settings.micro_batch_size)
    scale = normalisation(model, sft, tokenizer, held_out, settings, max_length) if settings.normalise else RAW
    trainer.accelerator.wait_for_everyone()
    if is_first_process():
        print(f"held-out accuracy {metrics['accuracy']:.3f} on {len(held_out)} pairs", file=sys.stderr)
        files = {"metrics.json": metrics, NORMALISATION: scale}
        publish(model.cpu(), tokenizer, output, state, files)


def new_classifier(sft: Path, seed: int) -> PreTrainedModel:
    """The SFT model's backbone under a new one-label head, drawn from `seed`; float32, dropout off."""
    policy = load_model(sft, device="cpu")
    config = AutoConfig.from_pretrained(sft, num_labels=1)
    turn_off_dropout(config)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    setattr(model, model.base_model_prefix, getattr(policy, policy.base_model_prefix))
    model.score = torch.nn.Linear(config.get_text_config().hidden_size, 1, bias=False)
    generator = torch.Generator().manual_seed(seed)
    torch.nn.init.normal_(model.score.weight, std=config.get_text_config().initializer_range, generator=generator)
    return model.eval()


class Comparisons(Sequence[dict[str, Any]]):
    """Rows `id, prompt_ids, chosen_ids, rejected_ids` of a token table, the latter two whole conversations.

    Each is read when it is asked for. A pair with a conversation above `max_length` tokens is left out and counted, not
    cut: its end decides the score.

    Raises:
        InputError: an unusable table, fewer than two pairs that fit.
    """

    def __init__(self, table: TokenTable, rows: np.ndarray) -> None:
        self.table, self.rows = table, rows

    @classmethod
    def of(cls, preferences: Path, max_length: int) -> tuple[Comparisons, int]:
        """Those of a file, and how many are left out."""
        table = TokenTable(preferences, "chosen_ids", "rejected_ids")
        use = table.whole(max_length)
        if len(use.rows) < 2:
            raise InputError(
                f"{preferences}: {len(use.rows)} pairs fit into {max_length} tokens; raise max_length or add pairs"
            )
        print(f"{preferences}: whole in {max_length} tokens: {use}", file=sys.stderr)
        return cls(table, use.rows), sum(use.dropped.values())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        row = self.rows[index]
        prompt, chosen, rejected = (self.table.ids(f"{name}_ids", row) for name in ("prompt", "chosen", "rejected"))
        ids = {"prompt_ids": prompt, "chosen_ids": [*prompt, *chosen], "rejected_ids": [*prompt, *rejected]}
        return {"id": self.table.name(row), **ids}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    @property
    def lengths(self) -> list[int]:
        """Tokens of the longer conversation of each."""
        found: list[int] = (self.table.lengths("prompt_ids") + self.table.longest)[self.rows].tolist()
        return found


def split(rows: Comparisons, seed: int) -> tuple[Comparisons, Comparisons]:
    """Training and held-out pairs, with disjoint prompts."""
    # Big-endian bytes sort as the token ids do.
    keys = [np.array(rows.table.ids("prompt_ids", row), dtype=">u4").tobytes() for row in rows.rows]
    prompts = sorted(set(keys))
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = {prompts[i] for i in order[: max(1, round(HELD_OUT * len(prompts)))]}
    is_held_out = np.array([key in held_out for key in keys])
    if is_held_out.all():
        raise InputError("all preference pairs share one prompt: none is left for training beside the held-out ones")
    return Comparisons(rows.table, rows.rows[~is_held_out]), Comparisons(rows.table, rows.rows[is_held_out])


def _trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Comparisons,
    settings: TrainedReward,
    state: Path,
    steps: int,
) -> Any:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    from po_dynamics.training.resume import collate_with_ids

    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(**arguments.arguments(settings, state, steps)),
        train_dataset=Dataset.from_list([{name: rows[0][name] for name in ("chosen_ids", "rejected_ids")}]),
        processing_class=tokenizer,
    )
    batch = settings.batch_size
    trainer.train_dataset = ShuffledRows(rows, steps * batch, settings.seed, rows.lengths, batch)
    trainer.data_collator = collate_with_ids(trainer.data_collator)
    return trainer


@torch.no_grad()
def scores(model: PreTrainedModel, sequences: Sequence[Sequence[int]], pad_id: int, batch_size: int) -> torch.Tensor:
    """Raw scores of whole conversations (token ids), (N,), float32 on the CPU; the last token is found by its place."""
    backbone, head = getattr(model, model.base_model_prefix), getattr(model, "score")  # noqa: B009
    result = torch.empty(len(sequences))
    for rows in longest_first(list(map(len, sequences)), batch_size):
        batch = collate([sequences[i][:-1] for i in rows], [sequences[i][-1:] for i in rows], pad_id)
        ids_BL, mask_BL, _ = batch.to(model.device)
        hidden_BLH = backbone(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).last_hidden_state
        last_BH = hidden_BLH[torch.arange(len(rows)), mask_BL.sum(1) - 1]
        result[rows] = head(last_BH).squeeze(-1).float().cpu()
    return result


def accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]], batch_size: int
) -> dict[str, float]:
    """Share of the pairs whose chosen response scores higher, its binomial standard error, and the mean margin."""
    sequences = [row[role] for role in ("chosen_ids", "rejected_ids") for row in rows]
    chosen, rejected = scores(model, sequences, int(tokenizer.pad_token_id), batch_size).chunk(2)
    share = float((chosen > rejected).double().mean() + 0.5 * (chosen == rejected).double().mean())
    error = (share * (1 - share) / len(rows)) ** 0.5
    margin = float((chosen - rejected).double().mean())
    return {"accuracy": share, "standard_error": error, "margin": margin, "held_out": len(rows)}


def normalisation(
    model: PreTrainedModel,
    sft: Path,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    settings: TrainedReward,
    max_length: int,
) -> dict[str, float]:
    """Mean and standard deviation of the raw scores of responses that the SFT model samples (temperature 1)."""
    from po_dynamics.models.sampling import CachedRollout, Sampling, row_uniforms

    policy = load_model(sft)
    longest = max(len(row["chosen_ids"]) - len(row["prompt_ids"]) for row in rows)
    room = max_length - max(len(row["prompt_ids"]) for row in rows)
    eos, pad = int(tokenizer.eos_token_id), int(tokenizer.pad_token_id)
    sampling = Sampling(max_new_tokens=min(longest, room), eos_ids=(eos,), pad_id=pad)
    prompts = [rows[i % len(rows)]["prompt_ids"] for i in range(SAMPLES)]
    uniforms_BR = row_uniforms(SAMPLES, sampling, (settings.seed, SAMPLES))
    responses = CachedRollout(policy, sampling, 4 * settings.micro_batch_size)(prompts, uniforms_BR)
    sequences = [[*prompt, *response.ids] for prompt, response in zip(prompts, responses, strict=True)]
    return fit_normalisation(scores(model, sequences, pad, settings.micro_batch_size))

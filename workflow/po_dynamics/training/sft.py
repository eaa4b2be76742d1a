"""Supervised fine-tuning of a base model on prompts and completions, with TRL's SFTTrainer."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from po_dynamics.data.order import ShuffledRows
from po_dynamics.errors import InputError
from po_dynamics.models.loading import load_model, usable_length
from po_dynamics.models.tokenizers import encode_prompt, encode_response, prepare_tokenizer, read_tokenizer
from po_dynamics.settings.training import Sft
from po_dynamics.storage.checkpoints import publish
from po_dynamics.storage.distributed import is_first_process
from po_dynamics.storage.parquet import read_rows
from po_dynamics.storage.state import identity, open_state
from po_dynamics.training import arguments

IGNORED = -100  # label of a token without loss


def train_sft(base: Path, data: Path, output: Path, state: Path, settings: Mapping[str, Any] | Sft) -> None:
    """Fine-tunes `base` on `sft.parquet` (`id, prompt, completion`); killed and called again, it ends the same.

    The tokenizer gets its pad token and chat template here (`models.prepare_tokenizer`), for all later stages.

    Args:
        output: the model with tokenizer, `training.csv` (a row per step), `training.json` (steps, batch, row counts).
        state: resumable state; removed on success.
        settings: `models.<model>.sft` of the configuration.

    Raises:
        InputError: bad data or settings, before any training; a loss or gradient that is not finite.
    """
    settings = Sft.of(settings, "sft")
    model = load_model(base, device="cpu")
    tokenizer = read_tokenizer(base)
    prepare_tokenizer(tokenizer, model)
    max_length = usable_length(model, settings.max_length)
    rows, counts = encode_rows(data, tokenizer, max_length, settings.loss_on)
    steps = arguments.total_steps(settings, len(rows))
    run = {"settings": settings.resolved(), "base": identity(base), "data": identity(data)}
    if is_first_process():
        open_state(state, run)
    trainer = _trainer(model, tokenizer, rows, settings, state, steps)

    trained = arguments.train(trainer, tokenizer, state, settings.save_every, "sft")
    if is_first_process():
        summary = {"steps": steps, "global_batch": settings.batch_size, "max_length": max_length, **counts}
        publish(load_model(trained, device="cpu"), tokenizer, output, state, {"training.json": summary})


def encode_rows(
    data: Path, tokenizer: PreTrainedTokenizerBase, max_length: int, loss_on: str
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows `id, input_ids, labels`, and counts: `rows`, `cut` (at the end), `dropped` (too long a prompt)."""
    rows, cut, dropped = [], 0, 0
    for row in read_rows(data, ["id", "prompt", "completion"]):
        if len(row["completion"]) != 1:
            raise InputError(f"{data}: the completion of {row['id']} has {len(row['completion'])} messages, not one")
        prompt_ids = encode_prompt(tokenizer, row["prompt"])
        response_ids = encode_response(tokenizer, row["prompt"], row["completion"][0])
        if len(prompt_ids) >= max_length:
            dropped += 1
            continue
        ids = [*prompt_ids, *response_ids]
        cut += len(ids) > max_length
        labels = ids if loss_on == "all" else [IGNORED] * len(prompt_ids) + response_ids
        rows.append({"id": row["id"], "input_ids": ids[:max_length], "labels": labels[:max_length]})
    if not rows:
        raise InputError(f"{data}: no prompt leaves room for an answer in {max_length} tokens; raise max_length")
    if cut or dropped:
        print(
            f"{data}: of {len(rows) + dropped} rows {cut} are cut to {max_length} tokens, {dropped} dropped (their "
            "prompt alone is as long)",
            file=sys.stderr,
        )
    return rows, {"rows": len(rows), "cut": cut, "dropped": dropped}


def _trainer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, Any]],
    settings: Sft,
    state: Path,
    steps: int,
) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from po_dynamics.training.resume import collate_with_ids

    placeholder = Dataset.from_list([{"input_ids": rows[0]["input_ids"], "labels": rows[0]["labels"]}])
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**arguments.arguments(settings, state, steps)),
        train_dataset=placeholder,
        processing_class=tokenizer,
    )
    lengths = [len(row["input_ids"]) for row in rows]
    batch = settings.batch_size
    trainer.train_dataset = ShuffledRows(rows, steps * batch, settings.seed, lengths, batch)
    trainer.data_collator = collate_with_ids(trainer.data_collator)
    return trainer

"""Supervised fine-tuning of a base model on prompts and completions, with TRL's SFTTrainer."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from po_dynamics.data.order import ShuffledRows
from po_dynamics.data.tokens.table import TokenTable
from po_dynamics.errors import InputError
from po_dynamics.models.loading import load_model, usable_length
from po_dynamics.models.tokenizers import prepare_tokenizer, read_tokenizer
from po_dynamics.settings.training import Sft
from po_dynamics.storage.checkpoints import publish
from po_dynamics.storage.distributed import is_first_process
from po_dynamics.storage.state import identity, open_state
from po_dynamics.training import arguments

IGNORED = -100  # label of a token without loss


def train_sft(base: Path, data: Path, output: Path, state: Path, settings: Mapping[str, Any] | Sft) -> None:
    """Fine-tunes `base` on the tokens of prompts and completions; killed and called again, it ends the same.

    The tokenizer gets its pad token and chat template here (`models.prepare_tokenizer`), for all later stages.

    Args:
        data: what `tokenise` wrote, of this model.
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
    rows = Examples(data, max_length, settings.loss_on)
    steps = arguments.total_steps(settings, len(rows))
    run = {"settings": settings.resolved(), "base": identity(base), "data": identity(data)}
    if is_first_process():
        open_state(state, run)
    trainer = _trainer(model, tokenizer, rows, settings, state, steps)

    trained = arguments.train(trainer, tokenizer, state, settings.save_every, "sft")
    if is_first_process():
        summary = {"steps": steps, "global_batch": settings.batch_size, "max_length": max_length, **rows.counts}
        publish(load_model(trained, device="cpu"), tokenizer, output, state, {"training.json": summary})


class Examples(Sequence[dict[str, Any]]):
    """Rows `id, input_ids, labels` of a token table, each read when it is asked for; cut to `max_length` tokens.

    Raises:
        InputError: an unusable table, no prompt that leaves room for an answer.
    """

    def __init__(self, data: Path, max_length: int, loss_on: str) -> None:
        self.table, self.max_length, self.loss_on = TokenTable(data, "completion_ids"), max_length, loss_on
        self.use = self.table.cut_to(max_length)
        if not len(self.use.rows):
            raise InputError(f"{data}: no prompt leaves room for an answer in {max_length} tokens; raise max_length")
        print(f"{data}: in {max_length} tokens: {self.use}", file=sys.stderr)

    def __len__(self) -> int:
        return len(self.use.rows)

    def __getitem__(self, index: Any) -> Any:
        row = self.use.rows[index]
        prompt, answer = self.table.ids("prompt_ids", row), self.table.ids("completion_ids", row)
        ids = [*prompt, *answer]
        labels = ids if self.loss_on == "all" else [IGNORED] * len(prompt) + answer
        return {
            "id": self.table.name(row),
            "input_ids": ids[: self.max_length],
            "labels": labels[: self.max_length],
        }

    @property
    def lengths(self) -> list[int]:
        """Tokens of each."""
        whole = (self.table.lengths("prompt_ids") + self.table.longest)[self.use.rows]
        found: list[int] = whole.clip(max=self.max_length).tolist()
        return found

    @property
    def counts(self) -> dict[str, int]:
        """`rows`, `cut` (at the end), `dropped` (too long a prompt)."""
        return {"rows": len(self), "cut": self.use.cut, "dropped": sum(self.use.dropped.values())}


def _trainer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Examples,
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
    batch = settings.batch_size
    trainer.train_dataset = ShuffledRows(rows, steps * batch, settings.seed, rows.lengths, batch)
    trainer.data_collator = collate_with_ids(trainer.data_collator)
    return trainer

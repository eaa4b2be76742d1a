"""Exact resume of a `transformers.Trainer` (TRL's trainers are such): killed at any moment, it ends bit-identical.

What the Trainer's own resume lacks, and this module adds: a checkpoint counts only with a marker written after
everything else is on disk; weights that saving renames are loaded; SIGTERM saves first; a run whose last step is
saved takes no further step; statistics of half-finished logging intervals are not lost (every step is logged); the
data order needs no sampler's state (`data.order.ShuffledRows`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainerState
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from po_dynamics.errors import InputError
from po_dynamics.storage.atomic import remove, sync, write_json
from po_dynamics.storage.checkpoints import save_step
from po_dynamics.storage.distributed import any_process
from po_dynamics.storage.sharding import full_tensor
from po_dynamics.storage.state import Termination, TrainingLog, require_finite

MARKER = "complete.json"
# Not the same after a resume (totals that TRL restarts, wall-clock rates), so they stay out of the log.
UNRESUMABLE = {"num_tokens", "epoch", "total_flos"}


def collate_with_ids(collator: Callable[[list[dict[str, Any]]], Any]) -> Callable[[list[dict[str, Any]]], Any]:
    """Carries the column `id` of the examples to the batch as `sample_ids`, for the message about a non-finite loss."""

    def collate(examples: list[dict[str, Any]]) -> Any:
        batch = collator([{k: v for k, v in example.items() if k != "id"} for example in examples])
        batch["sample_ids"] = [example.get("id", "?") for example in examples]
        return batch

    return collate


class Snapshots(TrainerCallback):
    """Saves the checkpoints that the probe reads, `folder/step-<t>`, at the given steps; 0 is the initial model."""

    def __init__(self, folder: Path, steps: Iterable[int], tokenizer: PreTrainedTokenizerBase, first_step: int = 0):
        self.folder, self.steps, self.tokenizer, self.first_step = folder, set(steps), tokenizer, first_step

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self._save(state, None, kwargs["model"])

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._save(state, kwargs["optimizer"], kwargs["model"])

    def _save(self, state: TrainerState, optimizer: Any, model: Any) -> None:
        step = self.first_step + state.global_step
        if step in self.steps:  # on every process: sharded weights are gathered
            save_step(model, self.tokenizer, self.folder / f"step-{step}", optimizer=optimizer)


class _Guard(TrainerCallback):
    """Stops at a non-finite loss or gradient before the optimizer uses it."""

    def __init__(self, trainer: Trainer, state: Path) -> None:
        self.trainer, self.state = trainer, state
        self.sample_ids: list[Any] = []
        self.compute_loss = trainer.compute_loss
        trainer.compute_loss = self._compute_loss  # type: ignore[method-assign]

    def _compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        ids = inputs.pop("sample_ids", [])
        result = self.compute_loss(model, inputs, *args, **kwargs)
        if model.training:
            self.sample_ids += ids
            loss = result[0] if isinstance(result, tuple) else result
            self._require_finite(float(loss.detach()), "the loss", ids)
        return result

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        norm = float(full_tensor(torch.nn.utils.get_total_norm(gradients)))
        self._require_finite(norm, "the gradient norm", self.sample_ids)
        self.sample_ids = []

    def _require_finite(self, value: float, what: str, ids: list[Any]) -> None:
        good = last_complete(self.state)
        step = self.trainer.state.global_step + 1
        require_finite(value, what=what, step=step, sample_ids=ids, last_good=good)


class _Keeper(TrainerCallback):
    """Marks complete checkpoints, deletes older ones, and answers SIGTERM with a checkpoint."""

    def __init__(self, state: Path, termination: Termination) -> None:
        self.state, self.termination = state, termination
        self.stopped = False

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if any_process(self.termination.requested, args.device):
            self.stopped = control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        folder = self.state / f"checkpoint-{state.global_step}"
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # every process has written its part
        if not state.is_world_process_zero:
            return
        sync(folder)
        write_json(folder / MARKER, {"step": state.global_step})
        for other in self.state.glob("checkpoint-*"):
            if other != folder:
                remove(other)


class _Reporter(TrainerCallback):
    """Writes training.csv and the progress bar."""

    def __init__(self, log: TrainingLog | None, first_step: int, description: str) -> None:
        self.log, self.first_step, self.description = log, first_step, description
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        if self.log is not None:
            self.log.rewind(self.first_step + state.global_step)
        self.bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc=self.description, unit="step", mininterval=5
        )

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or "train_runtime" in logs:
            return
        values = {k.replace("/", "_"): v for k, v in logs.items() if k not in UNRESUMABLE}
        if self.log is not None:
            self.log.append(self.first_step + state.global_step, values)
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{values.get('loss', float('nan')):.4f}", refresh=False)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update()

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()


def last_complete(state: Path) -> Path | None:
    """The newest checkpoint with its marker."""
    complete = [(json.loads(m.read_text())["step"], m.parent) for m in state.glob(f"checkpoint-*/{MARKER}")]
    return max(complete)[1] if complete else None


def _prepare(trainer: Trainer, state: Path, save_every: int) -> None:
    args = trainer.args
    if args.max_steps < 1:
        raise InputError(f"max_steps is {args.max_steps}: resumable training needs a number of steps of at least 1")
    args.output_dir, args.save_strategy, args.save_steps = str(state), "steps", save_every  # type: ignore[assignment]
    args.save_total_limit, args.save_only_model, args.ignore_data_skip = None, False, False
    # With longer intervals the sums of a half-finished one would be lost in a resume.
    args.logging_strategy, args.logging_steps, args.logging_first_step = "steps", 1, False  # type: ignore[assignment]
    args.logging_nan_inf_filter = False
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    if hasattr(trainer, "create_model_card"):
        trainer.create_model_card = lambda *_, **__: None  # type: ignore[method-assign]


def _load_weights(trainer: Trainer, folder: Path) -> None:
    """The weights of a checkpoint, every one of them.

    `save_pretrained` may rename weights (GPT-NeoX: lm_head to embed_out), which `from_pretrained` undoes; the Trainer's
    own resume does not: it leaves such weights as they were, with a warning (transformers 5.23).
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    saved = type(model).from_pretrained(folder, dtype=model.dtype)
    model.load_state_dict(saved.state_dict())


def _mend_loading(trainer: Trainer) -> None:
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if isinstance(trainer.model, PreTrainedModel) and not sharded:
        trainer._load_from_checkpoint = lambda folder, *_: _load_weights(trainer, folder)  # type: ignore[method-assign]


def train_resumably(
    trainer: Trainer,
    state: Path,
    *,
    save_every: int,
    log: TrainingLog | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    first_step: int = 0,
    description: str = "training",
) -> None:
    """Trains `trainer` to `args.max_steps`, from its last complete checkpoint in `state` if there is one.

    Every `save_every` steps, and on SIGTERM (then exit with status 143), the model, optimizer, schedule and random
    states are saved to `state/checkpoint-<n>`. `first_step` is added to the steps of `log`.
    `trainer.train_dataset` must give the same item for the same index every time, in the order of training: see
    `ShuffledRows`. Raises InputError for a non-finite loss or gradient, naming the step, the sample ids (see
    `collate_with_ids`) and the last good checkpoint.
    """
    if trainer.is_world_process_zero():
        for folder in state.glob("checkpoint-*"):
            if not (folder / MARKER).exists():
                remove(folder)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    _prepare(trainer, state, save_every)
    _mend_loading(trainer)
    last = last_complete(state)
    if last is not None and int(last.name.rpartition("-")[2]) >= trainer.args.max_steps:
        if not trainer.is_fsdp_enabled:  # sharded, nobody reads the weights: the step checkpoints are written
            trainer._load_from_checkpoint(str(last))  # `train` would take one step too many
        return
    with Termination() as termination:
        keeper = _Keeper(state, termination)
        reporter = _Reporter(log, first_step, description)
        for callback in (*callbacks, _Guard(trainer, state), reporter, keeper):
            trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        if keeper.stopped:
            termination.exit()

"""Offline preference optimisation: the training of DPO and its family."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset, Subset
from transformers import AutoConfig

from po_dynamics.data.order import ShuffledRows
from po_dynamics.data.preferences import REWARDS, Pairs, read_rewards
from po_dynamics.errors import InputError
from po_dynamics.models.loading import check_folder, load_model, usable_length
from po_dynamics.models.tokenizers import load_tokenizer
from po_dynamics.objectives.declaration import Objective
from po_dynamics.settings.training import Offline
from po_dynamics.storage.atomic import atomic_file, atomic_folder, remove
from po_dynamics.storage.distributed import is_first_process
from po_dynamics.storage.state import TrainingLog, identity, open_state
from po_dynamics.training.arguments import accumulation
from po_dynamics.training.reference import read_reference

if TYPE_CHECKING:
    from trl import DPOConfig


def train_offline(
    init: Path,
    preferences: Path,
    reference: Path,
    output: Path,
    log: Path,
    state: Path,
    objective: Objective,
    settings: Mapping[str, Any] | Offline,
    seed: int,
    first_step: int = 0,
    rewards: Path | None = None,
) -> None:
    """Trains a policy on preference pairs; killed at any moment and called again, it ends in the same weights.

    Args:
        init: the initial model (SFT or base), or a checkpoint `step-<first_step>` of another run; steps, data order and
            learning rate then go on from `first_step`, AdamW from its stored second moments and no momentum.
        preferences: what `tokenise` wrote, of this model.
        reference: what `compute_reference` wrote for these preferences.
        output: `checkpoints/`, a folder `step-<t>` for every t of `settings.checkpoints`.
        log: `training.csv`, a row per optimizer step.
        state: resumable state and finished checkpoints; removed on success.
        objective: an offline one.
        settings: `models.<model>.offline` of the configuration; `max_steps` is the last t.
        rewards: what `score_preferences` wrote for these preferences, where the objective needs rewards.

    Raises:
        InputError: bad settings, parameters or data; a loss or gradient that is not finite.
    """
    settings = Offline.of(settings, "offline")
    steps, accumulated = _checkpoint_steps(settings, first_step), accumulation(settings)
    rows = _rows(init, preferences, reference, rewards, settings)
    arguments = _arguments(state, settings, accumulated, settings.max_steps - first_step, seed)
    if is_first_process():
        run = {
            "objective": objective.name,
            "parameters": dict(objective.parameters),
            "settings": settings.resolved(),
            "seed": seed,
        }
        inputs = {"init": identity(init), "preferences": identity(preferences), "reference": identity(reference)}
        inputs |= {"rewards": identity(rewards)} if rewards else {}
        open_state(state, {**run, "first_step": first_step, **inputs})
    arguments.distributed_state.wait_for_everyone()  # type: ignore[union-attr]
    data = _in_order(rows, settings, first_step, seed)
    _train(init, state, objective, settings, first_step, arguments, data, steps)
    if is_first_process():
        _publish(state, steps, output, log)
    arguments.distributed_state.wait_for_everyone()  # type: ignore[union-attr]


def _train(
    init: Path,
    state: Path,
    objective: Objective,
    settings: Offline,
    first_step: int,
    arguments: DPOConfig,
    data: Dataset[Any],
    steps: Sequence[int],
) -> None:
    from po_dynamics.training import offline_trainer, resume  # these import TRL, which takes seconds

    tokenizer = load_tokenizer(init)
    # transformers' resume leaves weights at their initial values that are renamed in files (GPT-NeoX's head, silently).
    last = resume.last_complete(state)
    full = last is not None and (last / "config.json").is_file()  # sharded checkpoints are for the trainer alone
    policy = load_model(last if last and full else init, device="cpu")
    trainer = offline_trainer.OfflineTrainer(policy, arguments, tokenizer, data, objective, first_step)
    callbacks = [
        offline_trainer.AbsoluteSteps(init, first_step, settings),
        offline_trainer.StepRecord(trainer),
        resume.Snapshots(state / "checkpoints", steps, tokenizer, first_step),
    ]
    resume.train_resumably(
        trainer,
        state,
        save_every=settings.save_every,
        log=TrainingLog(state / "training.csv"),
        callbacks=callbacks,
        first_step=first_step,
        description=objective.name,
    )


def _in_order(rows: Rows, settings: Offline, first_step: int, seed: int) -> Dataset[Any]:
    """The rows of steps `first_step` to `max_steps`, in the order of training.

    Batches run across the ends of epochs, so every step has the whole global batch, on any number of processes.
    """
    size, last = settings.batch_size, settings.max_steps
    return Subset(ShuffledRows(rows, last * size, seed), range(first_step * size, last * size))


class Rows(Sequence[dict[str, Any]]):
    """The pairs as `OfflineTrainer` takes them, with further columns of numbers, each read when it is asked for."""

    def __init__(self, pairs: Pairs, columns: Mapping[tuple[str, str], Sequence[tuple[float, float]]]) -> None:
        self.pairs, self.columns = pairs, columns

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: Any) -> Any:
        row = self.pairs[index]._asdict()
        for names, values in self.columns.items():
            row |= zip(names, values[index], strict=True)
        return row


def _rows(init: Path, preferences: Path, reference: Path, rewards: Path | None, settings: Offline) -> Rows:
    """The pairs with their reference log-probs, and with rewards where there are some."""
    check_folder(init)
    pairs = Pairs(preferences, usable_length(AutoConfig.from_pretrained(init), settings.max_length))
    ids = pairs.ids
    columns = {("ref_chosen_logps", "ref_rejected_logps"): read_reference(reference, ids)}
    if rewards:
        columns[REWARDS] = read_rewards(rewards, ids)
    return Rows(pairs, columns)


def _checkpoint_steps(settings: Offline, first_step: int) -> list[int]:
    last = settings.max_steps
    if first_step >= last:
        raise InputError(f"max_steps = {last} must be above the step {first_step} that training starts from")
    return [t for t in settings.checkpoints if t >= first_step]


def _arguments(state: Path, settings: Offline, accumulated: int, updates: int, seed: int) -> DPOConfig:
    from trl import DPOConfig

    cuda = torch.cuda.is_available()
    return DPOConfig(
        output_dir=str(state),
        max_steps=updates,
        per_device_train_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=accumulated,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",  # `AbsoluteSteps` sets the factors by the absolute step
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        max_length=None,  # the rows are already cut
        bf16=settings.precision == "bf16",
        gradient_checkpointing=settings.gradient_checkpointing,
        report_to="none",
        seed=seed,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
    )


def _publish(state: Path, steps: Sequence[int], output: Path, log: Path) -> None:
    """Puts the finished checkpoints and the log in their declared places; the state goes last."""
    with atomic_folder(output) as temporary:
        for t in steps:
            shutil.copytree(state / "checkpoints" / f"step-{t}", temporary / f"step-{t}", copy_function=_link)
    with atomic_file(log) as temporary:
        shutil.copy2(state / "training.csv", temporary)
    remove(state)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)

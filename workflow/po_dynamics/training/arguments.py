"""What the trainings with TRL share: steps, batches, the Trainer's arguments."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from po_dynamics.errors import InputError
from po_dynamics.settings.training import Stage, Supervised
from po_dynamics.storage.state import TrainingLog


def total_steps(settings: Supervised, rows: int) -> int:
    """Optimizer steps: `max_steps`, or `epochs` passes over the rows."""
    if settings.max_steps is not None:
        return settings.max_steps
    assert settings.epochs is not None  # the settings have one of the two
    return max(1, math.ceil(settings.epochs * rows / settings.batch_size))


def accumulation(settings: Stage) -> int:
    """Micro-batches per step and process: batch_size = micro_batch_size × accumulation × processes."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    batch, micro = settings.batch_size, settings.micro_batch_size
    count, remainder = divmod(batch, micro * processes)
    if remainder or not count:
        raise InputError(
            f"batch_size = {batch} is no multiple of micro_batch_size × processes = {micro} × {processes}; change one"
        )
    print(f"global batch: {batch} = {micro} per device × {count} accumulated × {processes} processes", file=sys.stderr)
    return count


def arguments(settings: Supervised, state: Path, steps: int) -> dict[str, Any]:
    """Keyword arguments of TRL's SFTConfig and RewardConfig. Master weights stay float32; bf16 is autocast."""
    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(state),
        "max_steps": steps,
        "per_device_train_batch_size": settings.micro_batch_size,
        "per_device_eval_batch_size": settings.micro_batch_size,
        "gradient_accumulation_steps": accumulation(settings),
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_schedule,
        "warmup_steps": math.ceil(settings.warmup_ratio * steps),
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "max_length": None,  # the rows are cut already
        "bf16": settings.precision == "bf16",
        "gradient_checkpointing": settings.gradient_checkpointing,
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "report_to": "none",
        "seed": settings.seed,
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
    }


def train(trainer: Any, tokenizer: PreTrainedTokenizerBase, state: Path, save_every: int, description: str) -> Path:
    """Trains resumably and returns the folder of the trained model, whole however many processes share its weights.

    It is written after the last step and before the state of that step is complete, so it is there whenever that is.
    """
    from po_dynamics.training.resume import Snapshots, train_resumably

    steps = trainer.args.max_steps
    last = Snapshots(state / "trained", [steps], tokenizer)
    log = TrainingLog(state / "training.csv")
    train_resumably(trainer, state, save_every=save_every, log=log, callbacks=[last], description=description)
    trainer.accelerator.wait_for_everyone()  # the first process writes
    return state / "trained" / f"step-{steps}"

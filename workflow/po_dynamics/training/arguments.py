"""What supervised fine-tuning and reward-model training share: steps, batches, the Trainer's arguments, results."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from po_dynamics.errors import InputError
from po_dynamics.storage.atomic import atomic_folder, remove, write_json
from po_dynamics.storage.checkpoints import save_float32
from po_dynamics.storage.state import TrainingLog

DEFAULTS: dict[str, Any] = {  # of both stages; a configuration gives the rest
    "lr_schedule": "cosine",
    "warmup_ratio": 0.05,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "max_length": None,  # the model's context
    "precision": "fp32",
    "gradient_checkpointing": False,
    "save_every": 100,
}


def complete(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with defaults; one micro-batch per step unless told otherwise."""
    return {**DEFAULTS, "micro_batch_size": settings["batch_size"], **settings}


def context_length(settings: Mapping[str, Any], model: PreTrainedModel) -> int:
    """Tokens per sequence: `max_length`, or the model's context; InputError when the former exceeds the latter."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    wanted = settings["max_length"] or context or 1024
    if context and wanted > context:
        raise InputError(f"max_length = {wanted} is above the model's context of {context} tokens: lower it")
    return int(wanted)


def total_steps(settings: Mapping[str, Any], rows: int) -> int:
    """Optimizer steps: `max_steps`, or `epochs` passes over the rows."""
    if settings.get("max_steps"):
        return int(settings["max_steps"])
    if not settings.get("epochs"):
        raise InputError("give either max_steps or epochs")
    return max(1, math.ceil(settings["epochs"] * rows / settings["batch_size"]))


def accumulation(settings: Mapping[str, Any]) -> int:
    """Micro-batches per step and process: batch_size = micro_batch_size × accumulation × processes."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    batch, micro = settings["batch_size"], settings["micro_batch_size"]
    count, remainder = divmod(batch, micro * processes)
    if remainder or not count:
        raise InputError(
            f"batch_size = {batch} is no multiple of micro_batch_size × processes = {micro} × {processes}; change one"
        )
    print(f"global batch: {batch} = {micro} per device × {count} accumulated × {processes} processes", file=sys.stderr)
    return count


def arguments(settings: Mapping[str, Any], state: Path, steps: int) -> dict[str, Any]:
    """Keyword arguments of TRL's SFTConfig and RewardConfig. Master weights stay float32; bf16 is autocast."""
    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(state),
        "max_steps": steps,
        "per_device_train_batch_size": settings["micro_batch_size"],
        "per_device_eval_batch_size": settings["micro_batch_size"],
        "gradient_accumulation_steps": accumulation(settings),
        "learning_rate": settings["learning_rate"],
        "lr_scheduler_type": settings["lr_schedule"],
        "warmup_steps": math.ceil(settings["warmup_ratio"] * steps),
        "weight_decay": settings["weight_decay"],
        "max_grad_norm": settings["max_grad_norm"],
        "max_length": None,  # the rows are cut already
        "bf16": settings["precision"] == "bf16",
        "gradient_checkpointing": settings["gradient_checkpointing"],
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "report_to": "none",
        "seed": settings["seed"],
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
    }


def identity(path: Path) -> list[list[Any]]:
    """What tells whether an input changed: the hash of a file; names, sizes and times in a folder."""
    if path.is_file():
        return [[path.name, hashlib.sha256(path.read_bytes()).hexdigest()]]
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return [[str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def is_main_process() -> bool:
    """Whether this process writes the files."""
    return os.environ.get("RANK", "0") == "0"


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


def publish(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    output: Path,
    state: Path,
    files: Mapping[str, Mapping[str, Any]],
) -> None:
    """Writes the trained model (float32), training.csv and JSON `files` as one folder, then removes the state."""
    if getattr(model.config, "use_cache", None) is False:
        model.config.use_cache = True
    with atomic_folder(output) as temporary:
        save_float32(model, tokenizer, temporary)
        shutil.copy2(state / "training.csv", temporary)
        for name, content in files.items():
            write_json(temporary / name, content)
    remove(state)

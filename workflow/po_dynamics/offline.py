"""Offline preference optimisation: reference log-probabilities, and the training of DPO and its family."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import Dataset, Subset
from tqdm import tqdm
from transformers import AutoConfig, PreTrainedConfig

from po_dynamics import models, objectives
from po_dynamics.checkpointing import TrainingLog, atomic_file, atomic_folder, open_state, remove
from po_dynamics.errors import InputError
from po_dynamics.objectives import Objective
from po_dynamics.preferences import encode_pairs, read_table

if TYPE_CHECKING:
    from trl import DPOConfig


# ------------------------------------------------------------------------------------------ reference log-probabilities


def compute_reference(model: Path, data: Path, output: Path, settings: Mapping[str, Any]) -> None:
    """Writes log π_ref of both responses of every pair: `id, ref_chosen_logp, ref_rejected_logp` (sums, nats).

    `settings` needs micro_batch_size, max_length and precision; the pairs are those that `train_offline` sees.
    """
    policy, tokenizer = models.load_model(model), models.load_tokenizer(model)
    device = policy.device
    pairs = encode_pairs(data, tokenizer, _context(policy.config, settings))
    responses = [(p.prompt_ids, ids) for p in pairs for ids in (p.chosen_ids, p.rejected_ids)]
    by_length = sorted(range(len(responses)), key=lambda i: -len(responses[i][0]) - len(responses[i][1]))
    logps, size = [0.0] * len(responses), 2 * settings["micro_batch_size"]
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=settings["precision"] == "bf16"):
        for start in tqdm(range(0, len(responses), size), mininterval=5, desc="reference log-probs", unit="batch"):
            indices = by_length[start : start + size]
            prompts, answers = zip(*(responses[i] for i in indices), strict=True)
            batch = models.collate(prompts, answers, tokenizer.pad_token_id).to(device)
            for i, logp in zip(indices, models.token_logps(policy, batch).double().sum(1).tolist(), strict=True):
                logps[i] = logp
    if bad := [pairs[i // 2].id for i, logp in enumerate(logps) if not math.isfinite(logp)]:
        raise InputError(
            f"{model}: the log-prob of {bad[0]} is not finite ({len(bad)} responses); its weights are broken"
        )
    table = {"id": [p.id for p in pairs], "ref_chosen_logp": logps[::2], "ref_rejected_logp": logps[1::2]}
    with atomic_file(output) as temporary:
        pq.write_table(pa.table(table), temporary)


# ---------------------------------------------------------------------------------------------------------- training


def train_offline(
    init: Path,
    preferences: Path,
    reference: Path,
    output: Path,
    log: Path,
    state: Path,
    objective: str,
    parameters: Mapping[str, Any],
    settings: Mapping[str, Any],
    seed: int,
    first_step: int = 0,
) -> None:
    """Trains a policy on preference pairs; killed at any moment and called again, it ends in the same weights.

    Args:
        init: the initial model (SFT or base), or a checkpoint `step-<first_step>` of another run; steps, data order and
            learning rate then go on from `first_step`, AdamW from its stored second moments and no momentum.
        reference: what `compute_reference` wrote for these preferences.
        output: `checkpoints/`, a folder `step-<t>` for every t of `settings["checkpoints"]`.
        log: `training.csv`, a row per optimizer step.
        state: resumable state and finished checkpoints; removed on success.
        objective, parameters: an offline entry of `objectives.OBJECTIVES`.
        settings: `models.<model>.offline` of the configuration; `max_steps` is the last t.

    Raises:
        InputError: bad settings, parameters or data; a loss or gradient that is not finite.
    """
    method = _method(objective, parameters)
    steps, accumulation = _checkpoint_steps(settings, first_step), _accumulation(settings)
    rows = _rows(init, preferences, reference, settings)
    arguments = _arguments(state, settings, accumulation, settings["max_steps"] - first_step, seed)
    if _is_main_process():
        run = {"objective": objective, "parameters": dict(parameters), "settings": dict(settings), "seed": seed}
        inputs = {"init": _identity(init), "preferences": _identity(preferences), "reference": _identity(reference)}
        open_state(state, {**run, "first_step": first_step, **inputs})
    arguments.distributed_state.wait_for_everyone()  # type: ignore[union-attr]
    data = _in_order(rows, settings, first_step, seed)
    _train(init, state, method, parameters, settings, first_step, arguments, data, steps)
    if _is_main_process():
        _publish(state, steps, output, log)
    arguments.distributed_state.wait_for_everyone()  # type: ignore[union-attr]


def _train(
    init: Path,
    state: Path,
    method: Objective,
    parameters: Mapping[str, Any],
    settings: Mapping[str, Any],
    first_step: int,
    arguments: DPOConfig,
    data: Dataset[Any],
    steps: Sequence[int],
) -> None:
    from po_dynamics import offline_trainer, resume  # these import TRL and transformers

    tokenizer = models.load_tokenizer(init)
    # transformers' resume leaves weights at their initial values that are renamed in files (GPT-NeoX's head, silently).
    last = resume.last_complete(state)
    whole = last is not None and (last / "config.json").is_file()  # sharded checkpoints are for the trainer alone
    policy = models.load_model(last if last and whole else init, device="cpu")
    trainer = offline_trainer.OfflineTrainer(policy, arguments, tokenizer, data, method, parameters, first_step)
    callbacks = [
        offline_trainer.AbsoluteSteps(init, first_step, settings),
        offline_trainer.StepRecord(trainer),
        resume.Snapshots(state / "checkpoints", steps, tokenizer, first_step),
    ]
    resume.train_resumably(
        trainer,
        state,
        save_every=settings["save_every"],
        log=TrainingLog(state / "training.csv"),
        callbacks=callbacks,
        first_step=first_step,
        description=method.name,
    )


def _method(objective: str, parameters: Mapping[str, Any]) -> Objective:
    method = objectives.get(objective)
    if method.family != "offline":
        raise InputError(f"{objective} is an online objective; train_offline takes offline ones")
    method.check(parameters)
    return method


def _in_order(rows: list[dict[str, Any]], settings: Mapping[str, Any], first_step: int, seed: int) -> Dataset[Any]:
    """The rows of steps `first_step` to `max_steps`, in the order of training.

    Batches run across the ends of epochs, so every step has the whole global batch, on any number of processes.
    """
    from po_dynamics.resume import ShuffledRows

    size, last = settings["batch_size"], settings["max_steps"]
    return Subset(ShuffledRows(rows, last * size, seed), range(first_step * size, last * size))


def read_reference(path: Path, ids: Sequence[str]) -> list[tuple[float, float]]:
    """(chosen, rejected) reference log-probs in the order of `ids`; InputError when one is missing."""
    table = read_table(path, ["id", "ref_chosen_logp", "ref_rejected_logp"])
    found = {str(row["id"]): (row["ref_chosen_logp"], row["ref_rejected_logp"]) for row in table}
    if missing := [key for key in ids if key not in found]:
        raise InputError(f"{path} has no log-probs of pair {missing[0]} ({len(missing)} missing); compute it again")
    return [found[key] for key in ids]


def _rows(init: Path, preferences: Path, reference: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pairs as `OfflineTrainer` takes them."""
    models.check_folder(init)
    context = _context(AutoConfig.from_pretrained(init), settings)
    pairs = encode_pairs(preferences, models.load_tokenizer(init), context)
    logps = read_reference(reference, [pair.id for pair in pairs])
    return [
        dataclasses.asdict(pair) | {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        for pair, (chosen, rejected) in zip(pairs, logps, strict=True)
    ]


def _checkpoint_steps(settings: Mapping[str, Any], first_step: int) -> list[int]:
    last = settings["max_steps"]
    if first_step >= last:
        raise InputError(f"max_steps = {last} must be above the step {first_step} that training starts from")
    if late := [t for t in settings["checkpoints"] if t > last]:
        raise InputError(f"checkpoint {late[0]} is after the last step, max_steps = {last}")
    return sorted(t for t in set(settings["checkpoints"]) if t >= first_step)


def _accumulation(settings: Mapping[str, Any]) -> int:
    """Micro-batches per step and process; batch_size = micro_batch_size × accumulation × processes."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    batch, micro = settings["batch_size"], settings["micro_batch_size"]
    accumulation, remainder = divmod(batch, micro * processes)
    if remainder or not accumulation:
        raise InputError(
            f"batch_size = {batch} is no multiple of micro_batch_size × processes = {micro} × {processes}; change one"
        )
    derived = f"{micro} per device × {accumulation} accumulated × {processes} processes"
    print(f"global batch: {batch} pairs = {derived}", file=sys.stderr)
    return accumulation


def _arguments(state: Path, settings: Mapping[str, Any], accumulation: int, updates: int, seed: int) -> DPOConfig:
    from trl import DPOConfig

    cuda = torch.cuda.is_available()
    return DPOConfig(
        output_dir=str(state),
        max_steps=updates,
        per_device_train_batch_size=settings["micro_batch_size"],
        gradient_accumulation_steps=accumulation,
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="constant",  # `AbsoluteSteps` sets the factors by the absolute step
        weight_decay=settings["weight_decay"],
        max_grad_norm=settings["max_grad_norm"],
        max_length=None,  # the rows are already cut
        bf16=settings["precision"] == "bf16",
        gradient_checkpointing=settings["gradient_checkpointing"],
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


def _identity(path: Path) -> list[list[Any]]:
    """What tells whether an input changed: name, size and time of large files, the content of tables."""
    if path.is_file():
        return [[path.name, hashlib.sha256(path.read_bytes()).hexdigest()]]
    files: Iterator[Path] = (file for file in sorted(path.rglob("*")) if file.is_file())
    return [[str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _context(config: PreTrainedConfig, settings: Mapping[str, Any]) -> int:
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context and settings["max_length"] > context:
        raise InputError(f"max_length = {settings['max_length']} is above the model's context of {context} tokens")
    return int(settings["max_length"])


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"

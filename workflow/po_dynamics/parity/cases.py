"""Golden cases of TRL 1.12's PPOTrainer: what was recorded, how TRL reads token ids, how errors are measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from po_dynamics.errors import InputError
from po_dynamics.objectives.declaration import Objective
from po_dynamics.objectives.registry import bind
from po_dynamics.settings.online import Online

Quantity = tuple[str, float]  # its name and the largest error


class Case:
    """A golden case: configuration, and arrays in float64."""

    def __init__(self, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        self.meta, self.arrays, self.config = meta, arrays, meta["config"]
        self.pad, self.stop, self.eos = meta["pad_token_id"], meta["stop_token_id"], meta["eos_token_id"]
        self.updates = range(meta["num_updates"])

    @classmethod
    def read(cls, path: Path) -> Case:
        """From `<case>.json` and the `.npz` beside it; InputError for a case of several processes."""
        meta = json.loads(path.read_text())
        if meta.get("world_size", 1) != 1:
            raise InputError(f"{path}: world_size is {meta['world_size']}: only cases of one process can be replayed")
        with np.load(path.with_suffix(".npz")) as arrays:
            return cls(meta, dict(arrays))

    def __call__(self, key: str) -> Tensor:
        """A recorded array; InputError where it is missing."""
        if key not in self.arrays:
            raise InputError(f"golden case {self.meta.get('case')}: {key} is missing from the .npz")
        tensor = torch.as_tensor(self.arrays[key])
        return tensor.double() if tensor.is_floating_point() else tensor

    def micros(self, update: int) -> range:
        """The micro-batches of an update."""
        found = [key for key in self.arrays if key.startswith(f"u{update}/micro") and key.endswith("/inds")]
        return range(len(found))

    def steps_every(self, update: int) -> int:
        """Micro-batches per optimizer step: accelerate steps after each one of the last batch of the data loader."""
        micros = len(self.micros(update))
        wrapped = self.meta["optimizer_steps_per_update"][update] == micros
        return 1 if wrapped else self.config["gradient_accumulation_steps"]

    def objective(self) -> Objective:
        """The production objective of TRL's PPO loss."""
        return bind("ppo", {"epsilon": self.config["cliprange"]})

    def settings(self) -> Online:
        """The production settings that correspond to the case."""
        config, optimizer, steps = self.config, self.meta["optimizer"], len(self.updates)
        clipped = optimizer.get("gradient_clipping_applied", False)
        return Online(
            max_steps=steps,
            checkpoints=(0,),
            batch_size=len(self("u0/query_responses")),
            micro_batch_size=config["per_device_train_batch_size"],
            epochs=config["num_ppo_epochs"],
            mini_batches=config["num_mini_batches"],
            learning_rate=config["learning_rate"],
            max_prompt_length=1,
            max_new_tokens=config["response_length"],
            lr_schedule=str(optimizer.get("lr_scheduler", "linear")).split(".")[-1].lower(),  # type: ignore[arg-type]
            weight_decay=optimizer["weight_decay"][0],
            adam_epsilon=optimizer["eps"],
            max_grad_norm=optimizer["max_grad_norm_in_config"] if clipped else None,
            temperature=config["temperature"] + 1e-7,
            kl_coefficient=config["kl_coef"],
            kl_estimator=config["kl_estimator"],
            gamma=config["gamma"],
            gae_lambda=config["lam"],
            value_clip=config["cliprange_value"],
            value_coefficient=config["vf_coef"],
            missing_eos_penalty=config["missing_eos_penalty"],
            whiten_rewards=config["whiten_rewards"],
        )


class Reading(NamedTuple):
    """How TRL reads the sampled tokens of an update, (N, R); masks are True at what counts."""

    responses: Tensor  # cut at the first stop token, pad ids after it
    last_N: Tensor  # index of the last token; −1 where the first token is a pad
    ended_N: Tensor
    mask: Tensor  # tokens
    value_mask: Tensor  # states with a value: the tokens', and the one after the last


def first_true(flags: Tensor) -> Tensor:
    """Index of the first True of each row; the width where there is none."""
    return torch.where(flags.any(1), flags.long().argmax(1), flags.shape[1])


def read(case: Case, update: int) -> Reading:
    """TRL's reading: the length of a response comes from its first pad id."""
    sampled = case(f"u{update}/query_responses")[:, int(case(f"u{update}/context_length")) :]
    columns = torch.arange(sampled.shape[1])
    if case.stop is not None:
        sampled = sampled.masked_fill(columns > first_true(sampled == case.stop).unsqueeze(1), case.pad)
    last_N = first_true(sampled == case.pad) - 1
    mask, value_mask = columns <= last_N.unsqueeze(1), columns <= last_N.unsqueeze(1) + 1
    return Reading(sampled, last_N, (sampled == case.eos).any(1), mask, value_mask)


def worst(actual: Tensor, golden: Tensor) -> float:
    """Largest |actual − golden| / max(1, |golden|); equal NaNs agree, shapes must."""
    if actual.shape != golden.shape:
        return float("inf")
    error = (actual.double() - golden.double()).abs() / golden.double().abs().clamp(min=1.0)
    error = error.masked_fill(actual.isnan() & golden.isnan(), 0.0).nan_to_num(nan=float("inf"))
    return float(error.max()) if error.numel() else 0.0


def compare(case: Case, prefix: str, level: int, values: Mapping[str, Tensor]) -> Iterator[Quantity]:
    """The error of each value against the array of its name."""
    for name, value in values.items():
        yield f"level {level}: {name}", worst(value, case(f"{prefix}/{name}"))

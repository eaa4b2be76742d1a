"""Supervised fine-tuning and reward training of a tiny model, on any number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import toy
from po_dynamics.training import reward as reward_stage
from po_dynamics.training import sft as sft_stage

SETTINGS: dict[str, Any] = {
    "max_steps": 5, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 1e-3, "seed": 0, "save_every": 2,
}  # fmt: skip


def make_world(folder: Path) -> None:
    toy.tiny_folder(folder / "base", dropout=0.0)
    toy.write_tokens(toy.write_sft(folder / "sft.parquet", 40), folder / "base", "sft")
    toy.write_tokens(toy.write_preferences(folder / "preferences.parquet", 40), folder / "base")


def sft(world: Path, folder: Path, **changes: Any) -> None:
    sft_stage.train_sft(world / "base", world / "sft.arrow", folder / "output", folder / "state", SETTINGS | changes)


def reward(world: Path, folder: Path, **changes: Any) -> None:
    reward_stage.SAMPLES = 24
    reward_stage.train_reward(
        world / "base",
        world / "preferences.arrow",
        folder / "output",
        folder / "state",
        {"source": "train", **SETTINGS, **changes},
    )

"""Several trainings in one job, one after the other, each measured as soon as it is done and then thrown away."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from po_dynamics.storage.atomic import atomic_folder, remove
from po_dynamics.storage.parquet import write_frame
from po_dynamics.storage.state import open_state

Measure = Callable[[str, Path], dict[str, pd.DataFrame]]  # the arm and its final checkpoint → tables by name


class Training(NamedTuple):
    """A training: how it is called in the column `arm`, and what its trainer is told."""

    arm: str
    arguments: Mapping[str, Any]


def train_and_measure(
    trainings: list[Training],
    train: Callable[..., None],
    last_step: int,
    measure: Measure,
    output: Path,
    state: Path,
    signature: Mapping[str, Any],
) -> None:
    """Writes each table of `measure`, and the learning rates, of all trainings into the folder `output`.

    Killed and called again with the same `signature`, it goes on in the training where it was. `train` is
    `train_offline` or `train_online`; the checkpoint of `last_step` is measured.
    """
    open_state(state, signature)
    for training in trainings:
        if not (state / training.arm / "measured").is_dir():
            _train_one(training, train, last_step, measure, state / training.arm)
    with atomic_folder(output) as temporary:
        for name in sorted(path.name for path in (state / trainings[0].arm / "measured").iterdir()):
            parts = [pd.read_parquet(state / arm / "measured" / name).assign(arm=arm) for arm, _ in trainings]
            write_frame(pd.concat(parts, ignore_index=True), temporary / name)
    remove(state)


def _train_one(training: Training, train: Callable[..., None], last_step: int, measure: Measure, folder: Path) -> None:
    checkpoints, log = folder / "checkpoints", folder / "training.csv"
    if not (checkpoints.is_dir() and log.is_file()):
        train(**training.arguments, output=checkpoints, log=log, state=folder / "state")
    tables = measure(training.arm, checkpoints / f"step-{last_step}")
    tables["rates"] = pd.read_csv(log)[["step", "learning_rate"]]
    with atomic_folder(folder / "measured") as temporary:
        for name, table in tables.items():
            write_frame(table, temporary / f"{name}.parquet")
    remove(checkpoints)

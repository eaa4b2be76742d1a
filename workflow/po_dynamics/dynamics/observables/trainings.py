"""The probed checkpoints of each training, and the learning rates of the optimizer steps between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from po_dynamics.dynamics.alignment import KEYS, Probe
from po_dynamics.errors import InputError

OF_RUN = [key for key in KEYS if key != "step"]


class Rates(NamedTuple):
    """Learning rates of one training."""

    rows: pd.DataFrame  # of training.csv, by step: `steps` of the optimizer, `rate` = Σ η over them

    @classmethod
    def of(cls, curve: pd.DataFrame, steps_per_row: int = 1, idle: int = 0) -> Rates:
        """From training.csv, whose row k is of the step from k − 1 to k, with the learning rate of that step.

        Args:
            curve: training.csv.
            steps_per_row: optimizer steps of a row: 1 offline; epochs × mini_batches of an update online.
            idle: the policy does not learn in the first so many rows (warm-up of the critic).
        """
        rate = curve.set_index("step")["learning_rate"]
        steps = np.where(rate.index > idle, steps_per_row, 0)
        return cls(pd.DataFrame({"steps": steps, "rate": rate * steps}))

    def steps(self, step: int, next_step: int) -> int:
        """Optimizer steps from one checkpoint to the next."""
        return int(self.rows["steps"].loc[step + 1 : next_step].sum())

    def between(self, step: int, next_step: int) -> Weights:
        """How much the values at the two checkpoints count in Σ η_k x_k, for x linear between them.

        Raises:
            InputError: training.csv lacks a step of the interval.
        """
        rows = range(step + 1, next_step + 1)
        rates = self.rows["rate"].reindex(rows)
        if rates.isna().any():
            missing = int(rates.index[rates.isna()][0])
            raise InputError(
                f"training.csv has no learning rate of step {missing}, between the probed checkpoints {step} and "
                f"{next_step}: it is of another run; train this run again"
            )
        # Row k starts from the model after k − 1 steps.
        later = float(rates @ np.array([(k - 1 - step) / (next_step - step) for k in rows]))
        return Weights(float(rates.sum()) - later, later)


class Weights(NamedTuple):
    """Of the values at both ends of an interval; together Σ η, the distance that gradient descent would go."""

    earlier: float
    later: float

    def __call__(self, earlier: Any, later: Any) -> Any:
        """Σ η x over the interval, of numbers or series; nan where either end is."""
        return self.earlier * earlier + self.later * later


def of_run(rates: Mapping[tuple[str, str, int], Rates], keys: Mapping[Any, Any]) -> Rates:
    """The rates of the training that a checkpoint is of."""
    return rates[keys["model"], keys["run"], keys["seed"]]


def trainings(probes: Iterable[Probe]) -> Iterator[list[Probe]]:
    """The probed checkpoints of each training and set of final responses, in order of their steps."""
    ordered = sorted(probes, key=lambda probe: (*(probe.keys[key] for key in OF_RUN), probe.keys["step"]))
    for _, group in groupby(ordered, key=lambda probe: [probe.keys[key] for key in OF_RUN]):
        yield list(group)

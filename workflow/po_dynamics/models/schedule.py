"""The learning rate of every trainer: a function of the step alone, so that nothing of a scheduler has to be saved."""

from __future__ import annotations

import math


def learning_rate_factor(step: int, schedule: str, warmup: int, last: int) -> float:
    """Factor on the learning rate of the update after `step`: linear warm-up, then constant, linear or cosine to 0.

    `warmup` is the number of steps of warm-up, `last` the step at which linear and cosine reach 0.
    """
    if step < warmup:
        return step / warmup
    if schedule == "constant":
        return 1.0
    done = min((step - warmup) / max(1, last - warmup), 1.0)
    return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))

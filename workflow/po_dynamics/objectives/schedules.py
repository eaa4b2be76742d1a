"""Schedules: functions of the step alone, so that a resumed run has nothing of them to restore."""

from __future__ import annotations

import math


def ramp(step: int, t1: float, t2: float) -> float:
    """λ of cDPO: 0 until t1, 1 from t2, linear between (below Eq. 32); a hard switch where t1 = t2."""
    if t1 == t2:
        return float(step >= t1)
    return max(min((step - t1) / (t2 - t1), 1.0), 0.0)


def wave(step: int, t3: float, tau: float) -> float:
    """λ of hPPO: 1 for t3 steps, then dips to 1 − τ for t3 steps, and so on (below Eq. 35)."""
    return max(min(math.sin(math.pi * step / t3), 0.0), -tau) + 1


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

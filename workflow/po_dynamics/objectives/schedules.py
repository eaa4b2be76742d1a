"""Schedules: functions of the step."""

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

"""`models.<m>.online` of the configuration, with switches that only parity with TRL sets."""

from __future__ import annotations

import math
from typing import Literal

from po_dynamics.settings.base import Positive
from po_dynamics.settings.online import Online


class PPOSettings(Online):
    """The configuration's settings; the defaults of the switches below are the ones to train with."""

    score_position: Literal["eos", "after_eos"] = "eos"
    loss_norm: Literal["tokens", "micro_mean"] = "tokens"
    step_every: Positive | None = None  # micro-batches per optimizer step; None: one step per mini-batch
    accumulation: Positive = 1  # divides the loss of each micro-batch under micro_mean

    def lr_factor(self, step: int) -> float:
        """Learning rate of update `step` (from 0), as a share of the peak; a function of the step alone."""
        progress = step / self.max_steps
        if self.lr_schedule == "linear":
            return 1.0 - progress
        return 0.5 * (1.0 + math.cos(math.pi * progress)) if self.lr_schedule == "cosine" else 1.0

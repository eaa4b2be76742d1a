"""AdamW goes on from a stored checkpoint: its second moments and count of steps, without momentum."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from po_dynamics.storage.checkpoints import OPTIMIZER, read_moments
from po_dynamics.storage.sharding import shard_like, unwrapped


def restore_moments(folder: Path, model: Any, optimizer: Any) -> None:
    """Puts what `save_step` stored of an optimizer into one that has taken no step; nothing where it stored none.

    The step size is then what it would have been, but for momentum, which no checkpoint has.
    """
    moments, inner = read_moments(folder), getattr(optimizer, "optimizer", optimizer)
    if moments is None:
        return
    step = float(json.loads((folder / OPTIMIZER).read_text(encoding="utf-8"))["step"])
    for name, parameter in unwrapped(model).named_parameters():
        inner.state[parameter] = {
            "step": torch.tensor(step, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": shard_like(moments[name], parameter),
        }

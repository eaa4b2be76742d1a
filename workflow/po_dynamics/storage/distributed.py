"""What the processes of a run must agree on."""

from __future__ import annotations

import os

import torch
from torch import Tensor


def in_step() -> bool:
    """Whether the processes must make the same number of forward passes: sharded models gather weights in each."""
    return os.environ.get("ACCELERATE_USE_FSDP") == "true" and torch.distributed.is_initialized()


def everywhere(flag: Tensor) -> bool:
    """Whether the flag holds, on all processes where they must pass in step."""
    if in_step():
        flag = flag.int()
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
    return bool(flag)

"""What the processes of a run must agree on."""

from __future__ import annotations

import os
from typing import Any

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


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether any process says so (a cluster may warn only one of them): all must stop at the same step."""
    if not torch.distributed.is_initialized():
        return flag
    value = torch.tensor(int(flag), device=device)
    torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MAX)
    return bool(value.item())


def share(rows: int) -> slice:
    """This process's part of a batch whose rows are a multiple of the processes."""
    if not torch.distributed.is_initialized():
        return slice(0, rows)
    rank, each = torch.distributed.get_rank(), rows // torch.distributed.get_world_size()
    return slice(rank * each, (rank + 1) * each)


def gathered_rows(rows: Tensor) -> Tensor:
    """The rows of all processes, in order; their shapes are the same."""
    if not torch.distributed.is_initialized():
        return rows
    parts = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def gathered_items(items: list[Any]) -> list[Any]:
    """The items of all processes, in order; anything that can be pickled."""
    if not torch.distributed.is_initialized():
        return items
    parts: list[list[Any]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]

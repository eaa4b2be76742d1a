"""What the processes of a run must agree on: who writes, and what holds on any or on all of them."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor


def is_first_process() -> bool:
    """Whether this process writes the files; before the processes are connected their launcher's RANK tells."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    return os.environ.get("RANK", "0") == "0"


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether any process says so (a cluster may warn only one of them): all must stop at the same step."""
    if not torch.distributed.is_initialized():
        return flag
    value = torch.tensor(int(flag), device=device)
    torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MAX)
    return bool(value.item())


def in_step() -> bool:
    """Whether the processes must make the same number of forward passes: sharded models gather weights in each."""
    return os.environ.get("ACCELERATE_USE_FSDP") == "true" and torch.distributed.is_initialized()


def all_in_step(flag: Tensor) -> bool:
    """Whether the flag (a scalar) holds: on all processes where they must pass in step, else on this one."""
    if in_step():
        flag = flag.int()
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
    return bool(flag)


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

"""Full weights and optimizer states of a model that one process holds, or that FSDP2 spreads over several.

A sharded tensor is gathered by a collective: every process calls these functions, and in the same order. Tensors are
gathered one at a time, so no device ever holds a second copy of the model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from po_dynamics.storage.distributed import is_first_process


def unwrapped(model: Any) -> Any:
    """The model inside DistributedDataParallel; FSDP2 wraps nothing."""
    return getattr(model, "module", model)


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 spreads the model over processes."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def full_tensor(value: Tensor) -> Tensor:
    """The full tensor, on every process; a collective where it is sharded."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def shard_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A full tensor, the same on every process, moved and, where `parameter` is sharded, divided as `parameter` is."""
    value = value.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def weights(model: nn.Module, *, everywhere: bool = False) -> dict[str, Tensor]:
    """The state dict in float32 on the CPU, by names without wrappers' prefixes; tied weights stay one tensor.

    Only the first process gets it, and the others an empty dict; with `everywhere`, every process gets it.
    """
    model, keep = unwrapped(model), everywhere or is_first_process()
    if not (keep or is_sharded(model)):
        return {}
    identities = {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}
    gathered: dict[Any, Tensor] = {}
    state = {}
    for name, value in model.state_dict().items():
        key = identities.get(name, name)
        if key not in gathered:
            gathered[key] = _float32(value, keep)
        state[name] = gathered[key]
    return state if keep else {}


def second_moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's `exp_avg_sq` by parameter name, float32 on the CPU.

    Empty before the optimizer's first step, and on all processes but the first.
    """
    optimizer, model = getattr(optimizer, "optimizer", optimizer), unwrapped(model)  # accelerate wraps both
    if not (is_first_process() or is_sharded(model)):
        return {}
    moments = {
        name: _float32(optimizer.state[parameter]["exp_avg_sq"].detach(), is_first_process()).contiguous()
        for name, parameter in model.named_parameters()
        if "exp_avg_sq" in optimizer.state.get(parameter, {})
    }
    return moments if is_first_process() else {}


def _float32(value: Tensor, keep: bool) -> Tensor:
    """The full tensor on the CPU; without `keep` only the collective runs, and the result is empty."""
    full = full_tensor(value)
    return full.to("cpu", torch.float32) if keep else torch.empty(0)

"""States that a computation needs and that are put back afterwards: gradients, exact arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@contextmanager
def own_gradients(weights: Sequence[Tensor]) -> Iterator[None]:
    """`.grad` starts empty and the caller's is put back: a probe may run between two steps of a trainer."""
    kept = [weight.grad for weight in weights]
    set_gradients(weights, [None] * len(weights))
    try:
        yield
    finally:
        set_gradients(weights, kept)


def set_gradients(weights: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Sets every `.grad`."""
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient


class _KeepFloat64(TorchFunctionMode):
    """Models cast to float32 inside (softmax, norms, rotary angles); on float64 tensors this leaves them alone."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func is Tensor.float:
                return args[0]
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
            kwargs = {key: torch.float64 if value is torch.float32 else value for key, value in kwargs.items()}
        return func(*args, **kwargs)


@contextmanager
def exact_arithmetic(dtype: torch.dtype = torch.float64, tf32: bool = False) -> Iterator[None]:
    """TF32 off, unless its errors are studied, and float64 models in float64 throughout.

    G is a small difference of large terms.
    """
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    try:
        with _KeepFloat64() if dtype == torch.float64 else nullcontext():
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn

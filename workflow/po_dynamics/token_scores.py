"""Inner products of gradients, exactly: v, token scores by forward mode, component gradients by reverse mode.

With v = ∇ of the mean NLL of D′, the score of a response token is s_t = ⟨v, ∇log π(y_t | y_<t, x)⟩; one forward-mode
pass gives all tokens at once and stores no activations. Any objective's alignment is then −Σ c_t s_t. Gradient norms
and dot products per parameter come from one reverse pass, which reads each gradient the moment it is made.

Shapes: B sequences, L tokens, T = L − 1 predictions, K directions, P parameters, C components. No file is read here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from po_dynamics.errors import InputError
from po_dynamics.models import Batch, token_logps

Direction = dict[str, Tensor]  # by parameter name, as a gradient is


class TokenScores(NamedTuple):
    """Per prediction, 0 outside the loss mask: log π(y_t), s_t per direction, max_y log π(y)."""

    logps_BT: Tensor
    scores_KBT: Tensor
    argmax_logps_BT: Tensor


class ComponentGradients(NamedTuple):
    """float64, by parameter: ⟨direction, g⟩, ‖g‖², ‖Σ_c g_c‖², and ⟨g_0, g_1⟩ of the first two components (or 0)."""

    dots_CKP: Tensor
    squares_CP: Tensor
    total_squares_P: Tensor
    inner_P: Tensor


def require_forward_mode(model: PreTrainedModel) -> None:
    """InputError, with the remedy, where the model has no forward-mode derivative; tried on two tokens."""
    attention = getattr(model.config, "_attn_implementation", "eager")
    if attention != "eager":
        raise InputError(
            f"probe: {type(model).__name__} uses {attention!r} attention, which PyTorch cannot differentiate in "
            "forward mode: load it with attn_implementation='eager', or call model.set_attn_implementation('eager')"
        )
    ids_BL = torch.zeros(1, 2, dtype=torch.long, device=next(model.parameters()).device)
    batch = Batch(ids_BL, torch.ones_like(ids_BL), torch.ones_like(ids_BL[:, 1:], dtype=torch.bool))
    try:
        score_tokens(model, batch, [parameters(model)])
    except (NotImplementedError, RuntimeError) as error:
        raise InputError(
            f"probe: {type(model).__name__} cannot be differentiated in forward mode ({str(error).splitlines()[0]}): "
            "load it without custom kernels, quantisation or compilation"
        ) from None


def parameters(model: PreTrainedModel) -> dict[str, Tensor]:
    """Every parameter once (tied ones under their first name), detached."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def dot(a: Tensor, b: Tensor) -> Tensor:
    """⟨a, b⟩ accumulated in float64 (a scalar on the device of `a`)."""
    return (a * b).sum(dtype=torch.float64)


def _logits(call: Callable[..., Any], batch: Batch, selective: bool) -> Tensor:
    """Logits of the predictions from the first response token of any row on: (B, T′, V), T′ ≤ T."""
    keep = batch.input_ids_BL.shape[1] - int(batch.loss_mask_BT.any(0).int().argmax())
    extra = {"logits_to_keep": keep} if selective else {}
    ids_BL, mask_BL = batch.input_ids_BL, batch.attention_mask_BL
    return call(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False, **extra).logits[:, -keep:-1]


def _selective(model: PreTrainedModel) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def _place(values: Tensor, mask_BT: Tensor) -> Tensor:
    """(…, B, T′) → (…, B, T), 0 outside the mask."""
    widened = torch.nn.functional.pad(values, (mask_BT.shape[1] - values.shape[-1], 0))
    return widened.masked_fill(~mask_BT, 0.0)


def logps(model: PreTrainedModel, batch: Batch, temperature: float = 1.0) -> Tensor:
    """As `models.token_logps`, but without the logits of prompt positions; differentiable, (B, T)."""
    logits = _widened(_logits(model, batch, _selective(model))) / temperature
    targets = batch.input_ids_BL[:, -logits.shape[1] :].unsqueeze(-1)
    chosen = logits.gather(-1, targets).squeeze(-1)
    return _place(chosen - logits.logsumexp(-1), batch.loss_mask_BT)


def _widened(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@torch.no_grad()
def score_tokens(
    model: PreTrainedModel, batch: Batch, directions: Sequence[Direction], temperature: float = 1.0
) -> TokenScores:
    """One forward-mode pass per direction; with no direction a plain forward pass by the same code.

    s_t = ż_y − Σ_k π_k ż_k with ż the tangent of the logits (the derivative of a log-softmax).
    """
    selective, scores = _selective(model), []
    targets = batch.input_ids_BL.unsqueeze(-1)
    wanted: Sequence[Direction | None] = directions or [None]
    for direction in wanted:
        logits, tangents = _dual_logits(model, batch, direction, selective)
        logits = _widened(logits) / temperature
        chosen, normaliser = logits.gather(-1, targets[:, -logits.shape[1] :]).squeeze(-1), logits.logsumexp(-1)
        if tangents is not None:
            tangents = _widened(tangents) / temperature
            mean = torch.linalg.vecdot((logits - normaliser.unsqueeze(-1)).exp_(), tangents)
            scores.append(tangents.gather(-1, targets[:, -logits.shape[1] :]).squeeze(-1) - mean)
    scores_KBT = torch.stack(scores) if scores else chosen.new_zeros(0, *chosen.shape)
    parts = (chosen - normaliser, scores_KBT, logits.amax(-1) - normaliser)
    return TokenScores(*(_place(part, batch.loss_mask_BT) for part in parts))


def _dual_logits(
    model: PreTrainedModel, batch: Batch, direction: Direction | None, selective: bool
) -> tuple[Tensor, Tensor | None]:
    """Logits and their derivative along a direction of parameter space."""
    values = parameters(model)
    with forward_ad.dual_level():
        if direction is not None:
            values = {name: forward_ad.make_dual(value, direction[name]) for name, value in values.items()}
        logits = _logits(lambda **inputs: functional_call(model, values, (), inputs), batch, selective)
        primal, tangent = forward_ad.unpack_dual(logits)
        return primal, tangent


def nll_gradient(model: PreTrainedModel, batch: Batch, scale: float = 1.0) -> tuple[list[Tensor], Tensor]:
    """Gradient of scale · Σ_y −log π(y|x) by parameter, and −log π(y|x) of each response (B,), nats."""
    with evaluating(model):
        nll_B = -logps(model, batch).sum(-1)
        gradient = torch.autograd.grad((scale * nll_B).sum(), list(model.parameters()), materialize_grads=True)
    return list(gradient), nll_B.detach()


class _Meter:
    """Reads every parameter's gradient as backward makes it: no second gradient is ever held."""

    def __init__(self, model: PreTrainedModel, directions: Sequence[Direction]) -> None:
        named = list(model.named_parameters())
        self.parameters = [parameter for _, parameter in named]
        self.directions = [[direction[name] for name, _ in named] for direction in directions]
        device = self.parameters[0].device
        self.zero = torch.zeros((), dtype=torch.float64, device=device)
        self.dots = [[self.zero] * len(named) for _ in directions]
        self.squares, self.inner = [self.zero] * len(named), [self.zero] * len(named)

    def _read(self, index: int, gradient: Tensor) -> None:
        for dots, direction in zip(self.dots, self.directions, strict=True):
            dots[index] = dot(gradient, direction[index])
        self.squares[index] = dot(gradient, gradient)
        earlier = self.parameters[index].grad
        if earlier is not None:
            self.inner[index] = dot(gradient, earlier)

    @contextmanager
    def reading(self) -> Iterator[None]:
        handles = [
            parameter.register_hook(lambda gradient, index=index: self._read(index, gradient))
            for index, parameter in enumerate(self.parameters)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def component_gradients(
    model: PreTrainedModel,
    batch: Batch,
    coefficients: Mapping[str, Tensor],
    directions: Sequence[Direction],
    temperature: float = 1.0,
) -> ComponentGradients:
    """Gradients of −Σ c_t log π(y_t), one per component, measured and dropped; memory: one gradient.

    Components that share no sequence (chosen and rejected) run on their own sequences, which together costs one forward
    and backward; others (the signs of an advantage) share the forward pass. `coefficients` are (B, T), the mini-batch's
    normalisation included. The model's own `.grad` is put back afterwards.
    """
    rows = {name: (c_BT != 0).any(1) for name, c_BT in coefficients.items()}
    disjoint = bool(torch.stack(list(rows.values())).sum(0).max() <= 1)
    meters: list[_Meter] = []
    with own_gradients(model), evaluating(model):
        shared = None if disjoint else logps(model, batch, temperature)
        for place, (name, c_BT) in enumerate(coefficients.items()):
            meters.append(_Meter(model, directions))
            if not bool(rows[name].any()):
                continue
            if shared is None:
                part = select(batch, rows[name])
                c_BT = c_BT[rows[name]][:, : part.loss_mask_BT.shape[1]]
                with meters[-1].reading():
                    (-(c_BT * logps(model, part, temperature)).sum()).backward()
            else:
                with meters[-1].reading():
                    (-(c_BT * shared).sum()).backward(retain_graph=place + 1 < len(coefficients))
        totals = [meters[0].zero if p.grad is None else dot(p.grad, p.grad) for p in model.parameters()]
    return ComponentGradients(
        torch.stack([torch.stack([torch.stack(dots) for dots in m.dots]) for m in meters]).cpu(),
        torch.stack([torch.stack(m.squares) for m in meters]).cpu(),
        torch.stack(totals).cpu(),
        torch.stack(meters[1].inner if len(meters) > 1 else meters[0].inner).cpu(),
    )


def select(batch: Batch, rows_B: Tensor) -> Batch:
    """Some rows of a batch, trimmed to the longest of them."""
    length = int(batch.attention_mask_BL[rows_B].sum(1).max())
    return Batch(
        batch.input_ids_BL[rows_B, :length],
        batch.attention_mask_BL[rows_B, :length],
        batch.loss_mask_BT[rows_B, : length - 1],
    )


def oracle(
    model: PreTrainedModel,
    batch: Batch,
    coefficient_BT: Tensor,
    directions: Sequence[Direction],
    temperature: float = 1.0,
) -> list[float]:
    """⟨direction, ∇L⟩ as one would first write it: the training log-probs, one plain backward, one dot product."""
    with evaluating(model):
        loss = -(coefficient_BT * token_logps(model, batch, temperature)).sum()
        gradient = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    names = [name for name, _ in model.named_parameters()]
    return [sum(float(dot(g, d[name])) for name, g in zip(names, gradient, strict=True)) for d in directions]


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Dropout off; the earlier mode is restored."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def own_gradients(model: torch.nn.Module) -> Iterator[None]:
    """`.grad` starts empty and the caller's is put back: a probe may run between two steps of a trainer."""
    kept = [parameter.grad for parameter in model.parameters()]
    model.zero_grad(set_to_none=True)
    try:
        yield
    finally:
        for parameter, gradient in zip(model.parameters(), kept, strict=True):
            parameter.grad = gradient


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
def exact_arithmetic(dtype: torch.dtype = torch.float64) -> Iterator[None]:
    """TF32 off, and float64 models compute in float64 throughout: G is a small difference of large terms."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        with _KeepFloat64() if dtype == torch.float64 else nullcontext():
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn

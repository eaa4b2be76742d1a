"""Inner products of gradients, exactly: v, token scores by forward mode, component gradients by reverse mode.

With v = ∇ of the mean NLL of D′, the score of a response token is s_t = ⟨v, ∇log π(y_t | y_<t, x)⟩; one forward-mode
pass gives all tokens at once and stores no activations. Any objective's alignment is then −Σ c_t s_t. Gradient norms
and dot products per parameter come from one reverse pass, which reads each gradient the moment it is made.

Shapes: B sequences, L tokens, T = L − 1 predictions, K directions, P parameters, C components. No file is read here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call
from transformers import PreTrainedModel

from po_dynamics.errors import InputError
from po_dynamics.models.batches import Batch, least_padding, select, token_logps
from po_dynamics.models.loading import evaluating
from po_dynamics.probe.numerics import own_gradients, set_gradients

Direction = dict[str, Tensor]  # by parameter name, as a gradient is
REVERSE_TOKENS = 1024  # padded tokens of a reverse-mode pass, which stores activations
_DOT_BLOCK = {"cpu": 1 << 16}  # numbers that fit into a core's cache
_CALL_WORK = {
    "cpu": 2e8,
    "cuda": 5e12,
}  # floating-point operations that one forward and backward call is worth, roughly


class TokenScores(NamedTuple):
    """Per prediction, 0 outside the loss mask: log π(y_t), s_t per direction, max_y log π(y)."""

    logps_BT: Tensor
    scores_KBT: Tensor
    argmax_logps_BT: Tensor


class ComponentGradients(NamedTuple):
    """float64, by parameter: ⟨direction, g⟩, ‖g‖², ‖Σ_c g_c‖², and Σ ⟨g_a, g_b⟩ over pairs of components."""

    dots_CP: Tensor
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
    """⟨a, b⟩ in float64 (a scalar on the device of `a`), in blocks: no float64 copy of the whole is made."""
    block = _DOT_BLOCK.get(a.device.type, 1 << 26)
    if a.numel() <= block:
        return torch.dot(a.reshape(-1).double(), b.reshape(-1).double())
    blocks = zip(a.reshape(-1).split(block), b.reshape(-1).split(block), strict=True)
    return torch.stack([torch.dot(x.double(), y.double()) for x, y in blocks]).sum()


def _logits(call: Callable[..., Any], batch: Batch, selective: bool) -> Tensor:
    """Logits of the predictions from the first response token of any row on: (B, T′, V), T′ ≤ T."""
    keep = batch.input_ids_BL.shape[1] - int(batch.loss_mask_BT.any(0).int().argmax())
    extra = {"logits_to_keep": keep} if selective else {}
    ids_BL, mask_BL = batch.input_ids_BL, batch.attention_mask_BL
    logits_BTV: Tensor = call(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False, **extra).logits
    return logits_BTV[:, -keep:-1]


def _selective(model: PreTrainedModel) -> bool:
    return _has_argument(type(model).forward, "logits_to_keep")


@functools.cache
def _has_argument(function: Callable[..., Any], name: str) -> bool:
    return name in inspect.signature(function).parameters


def _place(values: Tensor, mask_BT: Tensor) -> Tensor:
    """(…, B, T′) → (…, B, T), 0 outside the mask."""
    widened = torch.nn.functional.pad(values, (mask_BT.shape[1] - values.shape[-1], 0))
    return widened.masked_fill(~mask_BT, 0.0)


def logps(model: PreTrainedModel, batch: Batch, temperature: float = 1.0) -> Tensor:
    """As `batches.token_logps`, but without the logits of prompt positions; differentiable, (B, T)."""
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
    nll_B, weights = torch.zeros(len(batch.input_ids_BL), dtype=torch.float64), list(model.parameters())
    with own_gradients(weights), evaluating(model):
        for rows in parts(batch, list(range(len(nll_B))), call_cost(weights)):
            part_nll_B = -logps(model, select(batch, rows)).sum(-1)
            (scale * part_nll_B.sum()).backward()
            nll_B[rows] = part_nll_B.detach().double().cpu()
        gradient = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    return gradient, nll_B


Sums = list[list[Tensor | None]]  # gradients by component and parameter; None where nothing was added yet


def add_gradients(
    model: PreTrainedModel, batch: Batch, coefficients_CBT: Sequence[Tensor], sums: Sums, temperature: float = 1.0
) -> None:
    """Adds the gradients of −Σ c_t log π(y_t), one per component, to `sums`.

    Sequences run in parts of similar length. A sequence of one component only (chosen or rejected) is differentiated
    once; where a sequence has tokens of several (signs of an advantage) they share the forward pass. Memory: a gradient
    per component and the activations of a part. The model's own `.grad` is put back afterwards.
    """
    present_CB = torch.stack([(c_BT != 0).any(1) for c_BT in coefficients_CBT]).cpu()
    weights = list(model.parameters())
    with own_gradients(weights), evaluating(model):
        for present in present_CB.unique(dim=1).T:
            same = (present_CB == present.unsqueeze(1)).all(0).nonzero().flatten().tolist()
            held = present.nonzero().flatten().tolist()
            for rows in parts(batch, same, call_cost(weights)) if held else ():
                part = select(batch, rows)
                logps_BT = logps(model, part, temperature)
                for c in held:
                    c_BT = coefficients_CBT[c][rows][:, : logps_BT.shape[1]]
                    set_gradients(weights, sums[c])
                    (-(c_BT * logps_BT).sum()).backward(retain_graph=c != held[-1])
                    sums[c] = [weight.grad for weight in weights]


def no_sums(model: PreTrainedModel, components: int) -> Sums:
    """Empty sums for `add_gradients`."""
    count = sum(1 for _ in model.parameters())
    return [[None] * count for _ in range(components)]


def added(sums: Sums) -> Iterator[Tensor]:
    """The sum of all components, parameter by parameter; parameters that have no gradient are left out."""
    for gradients in zip(*sums, strict=True):
        present = [gradient for gradient in gradients if gradient is not None]
        if present:
            yield sum(present[1:], present[0])


def measure_gradients(sums: Sums, named: Sequence[tuple[str, Tensor]], direction: Direction) -> ComponentGradients:
    """Norms and inner products of gradients, by component and parameter."""
    zero = torch.zeros((), dtype=torch.float64, device=named[0][1].device)
    columns = []
    for p, (name, weight) in enumerate(named):
        gradients, along = [part[p] for part in sums], direction[name].to(weight.device)
        dots = [zero if g is None else dot(g, along) for g in gradients]
        squares = [zero if g is None else dot(g, g) for g in gradients]
        cross = [dot(a, b) for i, a in enumerate(gradients) for b in gradients[:i] if a is not None and b is not None]
        columns.append(torch.stack([*dots, *squares, sum(cross, zero)]))
    table = torch.stack(columns, 1).cpu()
    dots_CP, squares_CP, inner_P = table[: len(sums)], table[len(sums) : -1], table[-1]
    return ComponentGradients(dots_CP, squares_CP, squares_CP.sum(0) + 2 * inner_P, inner_P)


def parts(batch: Batch, rows: Sequence[int], cost: float) -> list[list[int]]:
    """Rows of a batch in parts of similar length: as little padding as the cost of one more call is worth.

    A part has at most REVERSE_TOKENS padded tokens, or one row: eager attention stores heads · L² numbers of every
    layer and row.
    """
    return least_padding(rows, batch.attention_mask_BL.sum(1).tolist(), cost, REVERSE_TOKENS)


def call_cost(weights: Sequence[Tensor]) -> float:
    """What a call of a model with these parameters costs beside its arithmetic, in tokens."""
    return _CALL_WORK.get(weights[0].device.type, 2e8) / (6 * sum(weight.numel() for weight in weights))


def oracle(
    model: PreTrainedModel, batch: Batch, coefficient_BT: Tensor, direction: Direction, temperature: float = 1.0
) -> float:
    """⟨direction, ∇L⟩ as one would first write it: the training log-probs, one plain backward, one dot product."""
    with evaluating(model):
        loss = -(coefficient_BT * token_logps(model, batch, temperature)).sum()
        gradient = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    names = [name for name, _ in model.named_parameters()]
    return sum(float(dot(g, direction[name].to(g.device))) for name, g in zip(names, gradient, strict=True))

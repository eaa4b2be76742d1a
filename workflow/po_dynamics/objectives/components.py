"""Components of an objective as masks over tokens or pairs, on arrays or tensors alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from po_dynamics.errors import InputError


def thresholds(weight: Any, count: int = 3) -> tuple[float, ...]:
    """The count − 1 inner quantiles of a flat array or tensor of weights (linear interpolation, ranks exact)."""
    ordered = weight[weight.argsort()]
    if not len(ordered):
        raise InputError("quantiles of no weights: there is no response token or pair here")
    cuts = []
    for k in range(1, count):
        low, remainder = divmod((len(ordered) - 1) * k, count)
        cut = float(ordered[low])
        if remainder:
            cut += (float(ordered[low + 1]) - cut) * remainder / count
        cuts.append(cut)
    return tuple(cuts)


def groups(weight: Any, valid: Any = None, quantiles: tuple[float, ...] | None = None) -> dict[str, Any]:
    """Masks of TOP, MID and BOT by weight (Eqs. 8–10, 14–16); k − 1 increasing quantiles give k groups, Qk to Q1.

    `weight` is an array or tensor of any shape, `valid` a mask of what counts. The top group is weight ≥ its quantile,
    each lower one is weight > its quantile and not above, the last is the rest: so ties at the top go to TOP, BOT is
    weight ≤ Q_1/3 and not TOP, and the groups always partition `valid`.
    """
    valid = weight == weight if valid is None else valid
    cuts = thresholds(weight[valid]) if quantiles is None else quantiles
    top = weight >= cuts[-1]
    masks, rest = [valid & top], valid & ~top
    for cut in reversed(cuts[:-1]):
        masks.append(rest & (weight > cut))
        rest = rest & ~(weight > cut)
    masks.append(rest)
    names = ["TOP", "MID", "BOT"] if len(masks) == 3 else [f"Q{k}" for k in range(len(masks), 0, -1)]
    return dict(zip(names, masks, strict=True))


def components(positive: Any, valid: Any = None) -> dict[str, Any]:
    """Masks of POS and NEG: `positive` is `role == "chosen"` offline (Eqs. 6, 7), `advantage >= 0` online (12, 13)."""
    negative = ~positive
    return {"POS": positive, "NEG": negative} if valid is None else {"POS": positive & valid, "NEG": negative & valid}


def damping(factors: Mapping[str, float], masks: Mapping[str, Any], dtype: Any) -> Any:
    """The product of the factors of the components that a token or pair is in; tensors in the shape of the masks."""
    product = 1.0
    for name, factor in factors.items():
        if factor != 1:
            product = product * (1 - (1 - factor) * masks[name].to(dtype))
    return product

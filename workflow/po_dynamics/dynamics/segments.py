"""Segments of a model: the unit that is stored (embeddings, single layers, head) and the partitions made of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from po_dynamics.errors import InputError

ALL = "all"
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")


def units(names: Sequence[str]) -> list[str]:
    """The unit of each parameter, given in module order: `layer.<i>`, `embeddings` before the first layer, else `head`.

    The final norm and the output matrix belong to the head; a tied matrix is one parameter, of the embeddings.
    """
    layers = [_LAYER.search(name) for name in names]
    first = next((i for i, match in enumerate(layers) if match), len(names))
    return [f"layer.{match[1]}" if match else ("embeddings" if i < first else "head") for i, match in enumerate(layers)]


def thirds(layers: int) -> dict[str, list[str]]:
    """Bottom, middle and top third of the layers; the embeddings count to the bottom, the head to the top.

    Thirds are symmetric: 32 layers are 11, 10, 11; 4 are 1, 2, 1; 2 are 1, 0, 1.
    """
    parts: dict[str, list[str]] = {"bottom": ["embeddings"], "middle": [], "top": ["head"]}
    for layer in range(layers):
        parts[list(parts)[int(3 * (layer + 0.5) / layers)]].append(f"layer.{layer}")
    return parts


def single(layers: int) -> dict[str, list[str]]:
    """Every unit on its own."""
    return {unit: [unit] for unit in ("embeddings", *(f"layer.{i}" for i in range(layers)), "head")}


def check(partition: Mapping[str, Sequence[str]], layers: int) -> None:
    """InputError unless every unit is in exactly one part."""
    expected, seen = sorted(single(layers)), sorted(unit for part in partition.values() for unit in part)
    if seen != expected:
        odd = sorted(set(seen) ^ set(expected)) or sorted({unit for unit in seen if seen.count(unit) > 1})
        raise InputError(f"segments: {', '.join(odd)} must be in exactly one segment (units: {', '.join(expected)})")

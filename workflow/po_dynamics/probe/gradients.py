"""Rows of `batches.parquet`: each mini-batch in reverse mode, checked against forward mode and plain autograd."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from po_dynamics.dynamics.segments import ALL, units
from po_dynamics.dynamics.tables import COLUMNS
from po_dynamics.errors import InputError
from po_dynamics.models.batches import Batch
from po_dynamics.probe.token_scores import Direction, component_gradients, dot, oracle

SIGNS, GROUPS = ("POS", "NEG"), ("TOP", "MID", "BOT")
SEPARATE = (("TOT",), SIGNS, (*SIGNS, *GROUPS))
# Telling chosen from rejected sequences apart is free; telling signs of advantages apart costs a backward more.
DEFAULT_SEPARATE = {"offline": SIGNS, "online": ("TOT",)}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: math.inf}  # bf16 is for studying its errors


@dataclass(frozen=True)
class MiniBatch:
    """A mini-batch of D. Arrays have an entry per response token, row by row; `coefficient` is of its own mean loss."""

    batch: int
    n: int  # pairs or tokens
    loss: float
    inputs: Batch
    score: np.ndarray
    coefficient: np.ndarray
    masks: Mapping[str, np.ndarray]  # by component


@dataclass(frozen=True)
class Gradients:
    """Measures the gradient of each mini-batch of one model along v (and, as second direction, P⁻¹v).

    `separate` names the components whose gradients are made one by one; only these have norms and segments.
    """

    model: PreTrainedModel
    directions: Sequence[Direction]
    separate: tuple[str, ...]
    temperature: float
    tolerance: float

    def __post_init__(self) -> None:
        if self.separate not in SEPARATE:
            raise InputError(
                f"probe: separate is {self.separate!r}, but must be one of {', '.join(map(str, SEPARATE))}"
            )

    def rows(self, mini: MiniBatch, audit: bool) -> list[dict[str, Any]]:
        """One row per component and segment; InputError where the passes disagree by more than the tolerance."""
        measured, inner = self._measured(mini)
        floor = 0.01 * self.v_norm * math.sqrt(measured["TOT"][1].sum())
        audits = self._audit(mini) if audit else {}
        rows: list[dict[str, Any]] = []
        row: dict[str, Any]
        for name, mask in mini.masks.items():
            forward = -float((mini.coefficient * mini.score)[mask].sum())
            row = {"component": name, "segment": ALL, "dot": forward, "dot_forward": forward}
            row |= {"loss": mini.loss if name == "TOT" else math.nan, "audit_dot": audits.get(name, math.nan)}
            row["inner"] = inner if name == "TOT" else math.nan
            if name in measured:
                dots_KU, squares_U = measured[name]
                row |= _numbers(dots_KU.sum(1), squares_U.sum())
                rows += [
                    {"component": name, "segment": unit, **_numbers(dots_KU[:, u], squares_U[u])}
                    for u, unit in enumerate(self.units)
                ]
            row["rel_diff"] = _difference(row["dot"], forward, floor)
            self._check(row, floor, mini.batch)
            rows.append(row)
        return [{"batch": mini.batch, "set": "train", "n": mini.n, **row} for row in rows]

    @functools.cached_property
    def v_norm(self) -> float:
        return norms(self.directions[0])[ALL]

    @functools.cached_property
    def units(self) -> list[str]:
        """Segments that are stored, in module order."""
        return list(dict.fromkeys(units(list(self.directions[0]))))

    @functools.cached_property
    def unit_index_P(self) -> Tensor:
        """The place in `units` of every parameter."""
        return torch.tensor([self.units.index(unit) for unit in units(list(self.directions[0]))])

    def _measured(self, mini: MiniBatch) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], float]:
        """⟨direction, g⟩ (K, U) and ‖g‖² (U,) of every component of its own and of TOT; ⟨g_POS, g_NEG⟩."""
        signs = [name for name in self.separate if name not in GROUPS]
        part = self._own(mini, signs)
        dots_CKU, squares_CU = self._by_unit(part.dots_CKP), self._by_unit(part.squares_CP)
        measured = {name: (dots_CKU[c], squares_CU[c]) for c, name in enumerate(signs)}
        measured["TOT"] = (dots_CKU.sum(0), self._by_unit(part.total_squares_P))
        if GROUPS[0] in self.separate:
            for name in GROUPS:  # one by one: the memory of one gradient
                group = self._own(mini, [name])
                measured[name] = (self._by_unit(group.dots_CKP)[0], self._by_unit(group.squares_CP)[0])
        return measured, float(part.inner_P.sum()) if len(signs) > 1 else math.nan

    def _own(self, mini: MiniBatch, names: Sequence[str]) -> Any:
        coefficients = {name: self._spread(mini, mini.masks[name]) for name in names}
        return component_gradients(self.model, mini.inputs, coefficients, self.directions, self.temperature)

    def _spread(self, mini: MiniBatch, mask: np.ndarray) -> Tensor:
        """Coefficients of a component as (B, T)."""
        mask_BT = mini.inputs.loss_mask_BT
        c_BT = torch.zeros(mask_BT.shape, dtype=next(self.model.parameters()).dtype, device=mask_BT.device)
        c_BT[mask_BT] = torch.from_numpy(mini.coefficient * mask).to(c_BT)
        return c_BT.to(torch.promote_types(c_BT.dtype, torch.float32))

    def _by_unit(self, values: Tensor) -> np.ndarray:
        """(…, P) → (…, U)."""
        zeros = values.new_zeros(*values.shape[:-1], len(self.units))
        return zeros.index_add(-1, self.unit_index_P, values).numpy()

    def _audit(self, mini: MiniBatch) -> dict[str, float]:
        direction = self.directions[:1]
        return {
            name: oracle(self.model, mini.inputs, self._spread(mini, mask), direction, self.temperature)[0]
            for name, mask in mini.masks.items()
        }

    def _check(self, row: Mapping[str, Any], floor: float, batch: int) -> None:
        audit = row["audit_dot"]
        audited = 0.0 if math.isnan(audit) else _difference(audit, row["dot_forward"], floor)
        worst = max(row["rel_diff"], audited)
        if not worst <= self.tolerance:
            raise InputError(
                f"probe: mini-batch {batch}, {row['component']}: forward mode gives {row['dot_forward']:.8g}, reverse "
                f"mode {row['dot']:.8g}, plain autograd {audit:.8g}: a difference of {worst:.1e} > {self.tolerance:.0e}"
                "; probe in float64, and report the model if that does not help"
            )


def _numbers(dots_K: np.ndarray, square: float) -> dict[str, float]:
    return {
        "dot": float(dots_K[0]),
        "grad_norm": math.sqrt(max(float(square), 0.0)),
        "dot_adamw": float(dots_K[1]) if len(dots_K) > 1 else math.nan,
    }


def _difference(a: float, b: float, floor: float) -> float:
    """|a − b| relative to the larger of them, or to a hundredth of ‖v‖·‖∇L‖ where both are tiny beside it."""
    return abs(a - b) / max(abs(a), abs(b), floor, math.ulp(0.0)) if a != b else 0.0


def norms(direction: Direction) -> dict[str, float]:
    """‖v‖ of every stored segment and of the whole."""
    squares: dict[str, float] = {}
    for unit, tensor in zip(units(list(direction)), direction.values(), strict=True):
        squares[unit] = squares.get(unit, 0.0) + float(dot(tensor, tensor))
    return {name: math.sqrt(square) for name, square in {**squares, ALL: sum(squares.values())}.items()}


def batches_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """`batches.parquet`; outliers are of the whole objective (D) and of the NLL (D′), and flag every row of a batch."""
    frame = pd.DataFrame(rows)
    whole = frame[(frame["segment"] == ALL) & frame["component"].isin(["TOT", "NLL"])].set_index(["set", "batch"])
    flags = whole.groupby("set")["grad_norm"].transform(outliers).astype(bool)
    frame["outlier"] = flags.reindex(pd.MultiIndex.from_frame(frame[["set", "batch"]])).to_numpy()
    return frame.reindex(columns=COLUMNS["batches"])


def outliers(values: pd.Series) -> pd.Series:
    """True above Q3 + 1.5·(Q3 − Q1)."""
    q1, q3 = values.quantile(0.25), values.quantile(0.75)
    return values > q3 + 1.5 * (q3 - q1)

"""Gradients of mini-batches in reverse mode, and their rows of `batches.parquet`, checked against forward mode."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from po_dynamics.dynamics.segments import ALL, units
from po_dynamics.dynamics.tables import COLUMNS
from po_dynamics.errors import InputError
from po_dynamics.models.batches import Batch
from po_dynamics.probe.token_scores import (
    Direction,
    Sums,
    add_gradients,
    added,
    dot,
    measure_gradients,
    no_sums,
    oracle,
)

SIGNS, GROUPS = ("POS", "NEG"), ("TOP", "MID", "BOT")
SEPARATE = (SIGNS, (*SIGNS, *GROUPS))
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


class Measured(NamedTuple):
    """Of one mini-batch: gradients by component and parameter (None: all 0), and its rows."""

    sums: Sums
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class Gradients:
    """Makes the gradient of each mini-batch of one model, by component, and measures it along v.

    `separate` names the components whose gradients are made one by one.
    """

    model: PreTrainedModel
    direction: Direction
    separate: tuple[str, ...]
    temperature: float
    tolerance: float

    def __post_init__(self) -> None:
        if self.separate not in SEPARATE:
            raise InputError(
                f"probe: separate is {self.separate!r}, but must be one of {', '.join(map(str, SEPARATE))}"
            )

    def measure(self, mini: MiniBatch, whole: bool, audit: bool) -> Measured:
        """Gradients of a mini-batch and its rows: one per component and segment, or only the norm of TOT.

        Raises:
            InputError: where the passes disagree by more than the tolerance.
        """
        sums = no_sums(self.model, len(self.separate))
        coefficients = [spread(mini.coefficient * mini.masks[name], mini.inputs) for name in self.separate]
        add_gradients(self.model, mini.inputs, coefficients, sums, self.temperature)
        rows = self._rows(mini, sums, audit) if whole else [self._norm(mini, sums)]
        return Measured(sums, [{"batch": mini.batch, "set": "train", "n": mini.n, **row} for row in rows])

    def _norm(self, mini: MiniBatch, sums: Sums) -> dict[str, Any]:
        total = torch.nn.utils.get_total_norm(list(added(sums[: len(SIGNS)])))
        return {"component": "TOT", "segment": ALL, "grad_norm": float(total), "loss": mini.loss}

    def _rows(self, mini: MiniBatch, sums: Sums, audit: bool) -> list[dict[str, Any]]:
        measured, inner = self._measured(sums)
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
                dots_U, squares_U = measured[name]
                row |= _numbers(dots_U.sum(), squares_U.sum())
                rows += [
                    {"component": name, "segment": unit, **_numbers(dots_U[u], squares_U[u])}
                    for u, unit in enumerate(self.units)
                ]
            row["rel_diff"] = relative_difference(row["dot"], forward, floor)
            self._check(row, floor, mini.batch)
            rows.append(row)
        return rows

    @functools.cached_property
    def v_norm(self) -> float:
        return norms(self.direction)[ALL]

    @functools.cached_property
    def units(self) -> list[str]:
        """Segments that are stored, in module order."""
        return list(dict.fromkeys(units(list(self.direction))))

    @functools.cached_property
    def unit_index_P(self) -> Tensor:
        """The place in `units` of every parameter."""
        return torch.tensor([self.units.index(unit) for unit in units(list(self.direction))])

    def _measured(self, sums: Sums) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], float]:
        """⟨v, g⟩ and ‖g‖² by unit (U,) of every component of its own and of TOT; ⟨g_POS, g_NEG⟩."""
        named = list(self.model.named_parameters())
        signs = measure_gradients(sums[: len(SIGNS)], named, self.direction)
        groups = measure_gradients(sums[len(SIGNS) :], named, self.direction)
        parts = [
            *zip(signs.dots_CP, signs.squares_CP, strict=True),
            *zip(groups.dots_CP, groups.squares_CP, strict=True),
        ]
        measured = dict(zip(self.separate, parts, strict=True))
        measured["TOT"] = (signs.dots_CP.sum(0), signs.total_squares_P)
        by_unit = {
            name: (self._by_unit(dots_P), self._by_unit(squares_P)) for name, (dots_P, squares_P) in measured.items()
        }
        return by_unit, float(signs.inner_P.sum())

    def _by_unit(self, values: Tensor) -> np.ndarray:
        """(…, P) → (…, U)."""
        zeros = values.new_zeros(*values.shape[:-1], len(self.units))
        return zeros.index_add(-1, self.unit_index_P, values).numpy()

    def _audit(self, mini: MiniBatch) -> dict[str, float]:
        return {
            name: oracle(
                self.model, mini.inputs, spread(mini.coefficient * mask, mini.inputs), self.direction, self.temperature
            )
            for name, mask in mini.masks.items()
        }

    def _check(self, row: Mapping[str, Any], floor: float, batch: int) -> None:
        audit = row["audit_dot"]
        audited = 0.0 if math.isnan(audit) else relative_difference(audit, row["dot_forward"], floor)
        worst = max(row["rel_diff"], audited)
        if not worst <= self.tolerance:
            raise InputError(
                f"probe: mini-batch {batch}, {row['component']}: forward mode gives {row['dot_forward']:.8g}, reverse "
                f"mode {row['dot']:.8g}, plain autograd {audit:.8g}: a difference of {worst:.1e} > {self.tolerance:.0e}"
                "; probe in float64, and report the model if that does not help"
            )


def spread(values: np.ndarray, batch: Batch) -> Tensor:
    """Numbers per response token, row by row, as float64 (B, T): 0 outside the loss mask."""
    mask_BT = batch.loss_mask_BT
    spread_BT = torch.zeros(mask_BT.shape, dtype=torch.float64, device=mask_BT.device)
    spread_BT[mask_BT] = torch.from_numpy(values).to(spread_BT)
    return spread_BT


def _numbers(dot: float, square: float) -> dict[str, float]:
    return {"dot": float(dot), "grad_norm": math.sqrt(max(float(square), 0.0))}


def relative_difference(a: float, b: float, floor: float) -> float:
    """|a − b| relative to the larger of them, or to a hundredth of ‖v‖·‖∇L‖ where both are tiny beside it."""
    return abs(a - b) / max(abs(a), abs(b), floor, math.ulp(0.0)) if a != b else 0.0


def require_equal_sides(name: str, train: float, final: float, bound: float, tolerance: float) -> None:
    """InputError where the scores of D and the drifts of D′ give different G, by more than `tolerance`.

    The difference is relative to the larger of both, or to 1 % of `bound`, ‖v‖·‖u‖.
    """
    difference = relative_difference(train, final, 0.01 * bound)
    if not difference <= tolerance:
        raise InputError(
            f"probe: {name}: the scores of D give G = {train:.8g}, the drifts of D′ {final:.8g}: a difference of "
            f"{difference:.1e} > {tolerance:.0e}; probe in float64, and report the model if that does not help"
        )


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

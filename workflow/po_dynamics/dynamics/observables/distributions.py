"""Advantages and weights of D, by group."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from po_dynamics.dynamics.alignment import Probe
from po_dynamics.dynamics.coefficients import component_masks

GROUPS = ("TOP", "MID", "BOT")
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def advantages(probe: Probe) -> pd.DataFrame:
    """Figure 3: `…, group, raw_advantage, advantage, n`: means over the n tokens of each group; empty offline.

    Groups: TOT, POS, NEG, TOP, MID, BOT.
    """
    scores = probe.tables.scores
    if probe.tables.metadata["family"] == "offline":
        return pd.DataFrame()
    masks = component_masks(scores, scores["weight"].to_numpy())
    rows = [
        {"group": name, **scores.loc[mask, ["raw_advantage", "advantage"]].mean(), "n": int(mask.sum())}
        for name, mask in masks.items()
    ]
    return pd.DataFrame([{**probe.keys, **row} for row in rows])


def weights(probe: Probe) -> pd.DataFrame:
    """Distribution of ω or |Â| inside the groups: `…, group, n, mean` and quantiles `q0 … q100`.

    Counted in pairs offline, in tokens online.
    """
    scores = probe.tables.scores
    masks = component_masks(scores, scores["weight"].to_numpy())
    counted = np.ones(len(scores), dtype=bool)
    if probe.tables.metadata["family"] == "offline":
        counted = ~scores["sample_id"].duplicated().to_numpy()
    rows = []
    for name in ("TOT", *GROUPS):
        values = scores["weight"].to_numpy()[masks[name] & counted]
        quantiles = np.quantile(values, QUANTILES) if len(values) else np.full(len(QUANTILES), math.nan)
        named = {f"q{100 * q:g}": float(value) for q, value in zip(QUANTILES, quantiles, strict=True)}
        rows.append({"group": name, "n": len(values), "mean": values.mean() if len(values) else math.nan, **named})
    return pd.DataFrame([{**probe.keys, **row} for row in rows])

"""Does G predict what then happens to D′?"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from po_dynamics.dynamics.alignment import KEYS, Probe


def final_losses(probe: Probe) -> pd.DataFrame:
    """Mean NLL of D′ (nats per response) at this checkpoint, one row."""
    final = probe.tables.batches.query("set == 'final'")
    rate = probe.tables.metadata["learning_rate"]
    loss = float(np.average(final["loss"], weights=final["n"]))
    return pd.DataFrame([{**probe.keys, "final_loss": loss, "learning_rate": math.nan if rate is None else rate}])


def prediction(dynamics: pd.DataFrame, losses: pd.DataFrame) -> pd.DataFrame:
    """Does G predict what happens to D′? One row per pair of neighbouring checkpoints of a run.

    `…, step, next_step, final_loss, next_final_loss, change, predicted, predicted_adamw, learning_rate`; `change` is of
    the NLL of D′, per step, `predicted` = −(G_t + G_t′)/2 of TOT, `predicted_adamw` = −⟨v, P⁻¹∇L⟩ likewise (nan without
    optimizer state). A gradient step of size η changes the NLL by −η·G, so the two should rise together.
    """
    whole = dynamics.query("component == 'TOT' and segment == 'all' and not filtered")
    table = whole[[*KEYS, "G", "G_adamw"]].merge(losses, on=KEYS).sort_values(KEYS)
    runs = table.groupby([key for key in KEYS if key != "step"], sort=False)
    later = runs[["step", "final_loss", "G", "G_adamw"]].shift(-1)
    table["next_step"], table["next_final_loss"] = later["step"], later["final_loss"]
    table["change"] = (later["final_loss"] - table["final_loss"]) / (later["step"] - table["step"])
    table["predicted"] = -(table["G"] + later["G"]) / 2
    table["predicted_adamw"] = -(table["G_adamw"] + later["G_adamw"]) / 2
    table = table[table["next_step"].notna()].astype({"next_step": int})
    columns = ["next_step", "final_loss", "next_final_loss", "change", "predicted", "predicted_adamw", "learning_rate"]
    return table[[*KEYS, *columns]].reset_index(drop=True)


def rank_correlation(prediction: pd.DataFrame, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """`model, run, final_set, predictor, rho, low, high, n`: Spearman's ρ of change and prediction, all seeds together.

    The 95 % interval resamples pairs of neighbouring checkpoints; nan with fewer than three.
    """
    rows = []
    for keys, group in prediction.groupby(["model", "run", "final_set"]):
        for predictor in ("predicted", "predicted_adamw"):
            pairs = group[["change", predictor]].dropna().to_numpy()
            rho, low, high = _spearman(pairs, draws, seed)
            named = dict(zip(("model", "run", "final_set"), keys, strict=True))
            rows.append({**named, "predictor": predictor, "rho": rho, "low": low, "high": high, "n": len(pairs)})
    return pd.DataFrame(rows)


def _spearman(pairs: np.ndarray, draws: int, seed: int) -> tuple[float, float, float]:
    if len(pairs) < 3:
        return math.nan, math.nan, math.nan
    index = np.random.default_rng(seed).integers(len(pairs), size=(draws, len(pairs)))
    ranks = pd.DataFrame(pairs[index].transpose(1, 0, 2).reshape(len(pairs), -1)).rank().to_numpy()
    change, predicted = (ranks.reshape(len(pairs), draws, 2)[:, :, k] for k in (0, 1))
    change, predicted = change - change.mean(0), predicted - predicted.mean(0)
    norms = np.sqrt((change**2).sum(0) * (predicted**2).sum(0))
    resampled = (change * predicted).sum(0)[norms > 0] / norms[norms > 0]
    low, high = np.quantile(resampled, [0.025, 0.975]) if len(resampled) else (math.nan, math.nan)
    return float(spearmanr(*pairs.T).statistic), float(low), float(high)

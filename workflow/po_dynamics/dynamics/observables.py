"""Tables beside G: advantages, weights, log-probs, entanglement of the two gradients, and whether G predicts."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from po_dynamics.dynamics.alignment import KEYS, Probe
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


def logps(probe: Probe) -> pd.DataFrame:
    """Squeezing: `…, kind, logp, per_token, n`: mean log-prob per response and per token (nats), n responses.

    Kinds: `chosen`, `rejected`, `rollout` (of D), `<role>_argmax` (the most probable token at every position, teacher
    forced), `greedy` (D′).
    """
    scores, rows = probe.tables.scores, []
    for role, group in scores.groupby("role"):
        n = group["sample_id"].nunique()
        for kind, column in ((role, "logprob"), (f"{role}_argmax", "argmax_logprob")):
            rows.append({"kind": kind, "logp": group[column].sum() / n, "per_token": group[column].mean(), "n": n})
    final = probe.tables.batches.query("set == 'final'")
    n = int(final["n"].sum())
    rows.append(
        {"kind": "greedy", "logp": -float(np.average(final["loss"], weights=final["n"])), "per_token": math.nan, "n": n}
    )
    return pd.DataFrame([{**probe.keys, **row} for row in rows])


def entanglement(probe: Probe) -> pd.DataFrame:
    """`…, batch, inner, positive_norm, negative_norm, cosine, entangled` per mini-batch (arXiv 2410.13828).

    g⁺ and g⁻ are the ascent directions of the positive and of the negative part's log-probs, so inner is
    −⟨∇L_POS, ∇L_NEG⟩. With inner > ‖g⁺‖² a step of DPO lowers the chosen log-prob, with inner > ‖g⁻‖² it raises the
    rejected one: `entangled` says whether either holds.
    """
    batches = probe.tables.batches.query("set == 'train' and segment == 'all'")
    by_name = {name: rows.set_index("batch") for name, rows in batches.groupby("component")}
    if by_name["POS"]["grad_norm"].isna().all():
        return pd.DataFrame()
    table = pd.DataFrame({"inner": -by_name["TOT"]["inner"]})
    table["positive_norm"], table["negative_norm"] = by_name["POS"]["grad_norm"], by_name["NEG"]["grad_norm"]
    norms = table["positive_norm"] * table["negative_norm"]
    table["cosine"] = (table["inner"] / norms.where(norms > 0)).fillna(0.0)
    table["entangled"] = table["inner"] > table[["positive_norm", "negative_norm"]].min(axis=1) ** 2
    return pd.DataFrame([{**probe.keys, **row} for row in table.reset_index().to_dict("records")])


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

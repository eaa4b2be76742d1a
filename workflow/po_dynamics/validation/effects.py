"""What leaving a component out of one interval of training did, beside what G of that component predicts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from po_dynamics.validation.statistics import Estimate, mean_difference, percentiles, rank_correlation, resampled

EVERYTHING = "TOT"  # the arm from which nothing is left out
MOMENTUM = 0.9  # AdamW's β1, of both trainers
PREDICTORS = ("predicted", "predicted_adamw")
OUTCOMES = ("change", "win_change")
INTERVAL = ["model", "run", "seed", "step"]


def effects(
    folder: Path, keys: Mapping[str, Any], next_step: int, updates: int, dynamics: pd.DataFrame
) -> pd.DataFrame:
    """A row per component of one interval: what its absence changed, against the training with everything.

    `…, step, next_step, component, change` (of the mean NLL of D′, nats per response), `win_change` (percentage
    points), each with `_low`, `_high` over responses or prompts, `predicted` = Σ η·G of the component, and
    `predicted_adamw` = Σ η·m·⟨v, P⁻¹∇L⟩ of the component, m of `momentum` (nats, both of the NLL).

    Args:
        folder: what `left_out.retrain_without` wrote.
        keys: `model, run, seed, step` of the checkpoint from which the interval starts.
        updates: optimizer steps per row of training.csv.
        dynamics: dynamics.parquet of the run: G of both ends of the interval.
    """
    losses, judged, rates = (pd.read_parquet(folder / f"{name}.parquet") for name in ("losses", "judged", "rates"))
    preference = 50 * (judged["preference"] + judged["preference_swapped"])
    outcomes = {"change": losses, "win_change": judged.assign(win=preference)[["arm", "id", "win"]]}
    tables = {name: table.pivot(index="id", columns="arm") for name, table in outcomes.items()}
    rates_T = np.repeat(rates.loc[rates["arm"] == EVERYTHING, "learning_rate"].to_numpy(), updates)
    applied_T = rates_T * momentum(len(rates_T), updates * int(keys["step"]))
    alignment = _alignment(dynamics, keys, next_step)
    rows = []
    for component in [arm for arm in losses["arm"].unique() if arm != EVERYTHING]:
        row: dict[str, Any] = {**keys, "next_step": next_step, "component": component}
        for name, table in tables.items():
            wide = table.droplevel(0, axis=1)
            row |= _named(name, mean_difference(wide[EVERYTHING].to_numpy(), wide[component].to_numpy()))
        # A step of the whole lowers the NLL by η·G, the component's share of it by η times its own G.
        row |= {"predicted": float(rates_T.sum() * alignment.loc[component, "G"])}
        row |= {"predicted_adamw": float(applied_T.sum() * alignment.loc[component, "G_adamw"])}
        rows.append(row)
    return pd.DataFrame(rows)


def momentum(steps: int, before: int) -> np.ndarray:
    """How much of a constant gradient each of AdamW's steps applies, (T,), after a start without momentum.

    (1 − β1^t) / (1 − β1^(n + t)): its count of n steps goes on, so that bias correction does not make up for the start.
    """
    t = np.arange(1, steps + 1)
    return (1 - MOMENTUM**t) / (1 - MOMENTUM ** (before + t))


def _alignment(dynamics: pd.DataFrame, keys: Mapping[str, Any], next_step: int) -> pd.DataFrame:
    """G and G_adamw by component: the mean of the interval's two ends."""
    of_run = (dynamics[["model", "run", "seed"]] == [keys["model"], keys["run"], keys["seed"]]).all(axis=1)
    ends = dynamics["step"].isin([keys["step"], next_step]) & (dynamics["final_set"] == "heldout")
    whole = (dynamics["segment"] == "all") & ~dynamics["filtered"]
    return dynamics[of_run & ends & whole].groupby("component")[["G", "G_adamw"]].mean()


def _named(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def agreement(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """How prediction and outcome agree, over all components, intervals and seeds of a run.

    `model, run, outcome, predictor, rho, low, high` (Spearman; 95 % over intervals of training, each with all its
    components; none with fewer than three), `signs` (share right, of `n_resolved` outcomes whose own interval excludes
    0), `slope` (of the outcome on the prediction, through 0; of the NLL on AdamW's it should be 1), `n`. Were it good
    to become the final model, leaving out what leads there would cost wins: the win rate is compared with minus the
    prediction.
    """
    rows = []
    for (model, run), of_run in table.groupby(["model", "run"]):
        blocks = [np.array(rows) for rows in of_run.reset_index(drop=True).groupby(INTERVAL).indices.values()]
        draws = _block_draws(blocks, seed)
        for outcome in OUTCOMES:
            for predictor in PREDICTORS:
                if of_run[predictor].notna().all():
                    found = _agreement(of_run, outcome, predictor, draws)
                    rows.append({"model": model, "run": run, "outcome": outcome, "predictor": predictor, **found})
    return pd.DataFrame(rows)


def _block_draws(blocks: list[np.ndarray], seed: int) -> np.ndarray:
    if len(blocks) < 3:  # resampling them would claim a certainty that two cannot give
        return np.empty((0, sum(map(len, blocks))), int)
    return np.stack([np.concatenate([blocks[k] for k in drawn]) for drawn in resampled(len(blocks), seed)])


def _agreement(of_run: pd.DataFrame, outcome: str, predictor: str, draws: np.ndarray) -> dict[str, float]:
    y_N = of_run[outcome].to_numpy()
    x_N = of_run[predictor].to_numpy() * (1 if outcome == "change" else -1)
    rho = rank_correlation(x_N, y_N, draws)
    resolved = (of_run[f"{outcome}_low"] > 0) | (of_run[f"{outcome}_high"] < 0)
    right = np.sign(x_N[resolved]) == np.sign(y_N[resolved])
    slope = percentiles((x_N @ y_N) / (x_N @ x_N), (x_N[draws] * y_N[draws]).sum(1) / (x_N[draws] ** 2).sum(1))
    return {
        "rho": rho.value,
        "low": rho.low,
        "high": rho.high,
        "signs": float(right.mean()) if len(right) else float("nan"),
        "n_resolved": int(resolved.sum()),
        "slope": slope.value,
        "slope_low": slope.low,
        "slope_high": slope.high,
        "n": len(of_run),
    }

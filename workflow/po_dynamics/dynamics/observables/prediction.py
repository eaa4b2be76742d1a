"""Does G predict what happens to D′? The change of its NLL between probed checkpoints against −Σ η·G over the steps.

A step of gradient descent of size η changes the mean NLL of D′ by −η·G, one of AdamW (without momentum, clipping and
weight decay) by −η·⟨v, P⁻¹∇L⟩, to first order: the second is in nats, for it is the step that is taken. Σ is over all
optimizer steps between two checkpoints, with G linear between them. What a prediction is worth is seen beside what
needs no G: the number of the step, for everything settles down while a run goes on, and Σ η alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from po_dynamics.dynamics.alignment import KEYS, Probe
from po_dynamics.dynamics.observables.resampling import Ranked, block_weights, percentiles, rank_correlation
from po_dynamics.dynamics.observables.trainings import OF_RUN, Rates, of_run

DRAWS = 2000  # of blocks
PREDICTORS = ("predicted", "predicted_adamw")
BASELINES = ("step", "rate")  # that need no G: the earlier checkpoint's step, Σ η


def final_losses(probe: Probe) -> pd.DataFrame:
    """Mean NLL of D′ (nats per response) at this checkpoint, one row."""
    final = probe.tables.batches.query("set == 'final'")
    return pd.DataFrame([{**probe.keys, "final_loss": float(np.average(final["loss"], weights=final["n"]))}])


def changes(dynamics: pd.DataFrame, losses: pd.DataFrame, rates: Mapping[tuple[str, str, int], Rates]) -> pd.DataFrame:
    """`prediction.parquet`: one row per pair of neighbouring probed checkpoints of a training.

    `…, step, next_step, optimizer_steps, rate, final_loss, next_final_loss, change, predicted, predicted_adamw`: `rate`
    is Σ η of the optimizer steps between, `change` that of the NLL of D′ in nats per response, `predicted` = −Σ η·G of
    TOT, `predicted_adamw` = −Σ η·⟨v, P⁻¹∇L⟩, nan where a checkpoint has no optimizer state.

    Args:
        dynamics: of `alignment.tabulate`.
        losses: of `final_losses`, of all checkpoints.
        rates: by model, run and seed.
    """
    whole = dynamics.query("component == 'TOT' and segment == 'all' and not filtered")
    table = whole[[*KEYS, "G", "G_adamw"]].merge(losses, on=KEYS).sort_values(KEYS)
    later = table.groupby(OF_RUN, sort=False)[["step", "final_loss", "G", "G_adamw"]].shift(-1)
    table = table.join(later.add_prefix("next_")).dropna(subset="next_step").astype({"next_step": int})
    if table.empty:
        return pd.DataFrame(columns=[*KEYS, *_COLUMNS])
    rows = [_row(row, of_run(rates, row)) for row in table.to_dict("records")]
    return pd.concat([table.reset_index(drop=True), pd.DataFrame(rows)], axis=1)[[*KEYS, *_COLUMNS]]


_COLUMNS = ["next_step", "optimizer_steps", "rate", "final_loss", "next_final_loss", "change", *PREDICTORS]


def _row(pair: Mapping[Any, Any], rates: Rates) -> dict[str, float]:
    step, next_step = int(pair["step"]), int(pair["next_step"])
    weights = rates.between(step, next_step)
    return {
        "optimizer_steps": rates.steps(step, next_step),
        "rate": sum(weights),
        "change": pair["next_final_loss"] - pair["final_loss"],
        "predicted": -weights(pair["G"], pair["next_G"]),
        "predicted_adamw": -weights(pair["G_adamw"], pair["next_G_adamw"]),
    }


def assess(changes: pd.DataFrame, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """`prediction_tests.parquet`: `model, run, final_set, predictor, statistic, value, low, high, n, seeds`.

    Per predictor, over the n pairs that have it, of all seeds: `rho`, Spearman's ρ of change and prediction; `rho_step`
    and `rho_rate`, of the baselines on the same pairs; `over_step`, `over_rate`: ρ less the absolute value of the
    baseline's; `partial_step`, `partial_rate`: ρ with the baseline's ranks taken out; `slope` of change on prediction
    through the origin (of AdamW's: 1 if each predicted nat is one that happened).

    95 % intervals resample seeds and, within a seed, blocks of neighbouring pairs. Of one seed they say how much hangs
    on single stretches of this training, and of two seeds hardly more; for what other trainings give it takes more.
    """
    rows = []
    for keys, group in changes.groupby(["model", "run", "final_set"]):
        named = dict(zip(("model", "run", "final_set"), keys, strict=True))
        for predictor in PREDICTORS:
            pairs = group.dropna(subset=predictor).sort_values(["seed", "step"])
            about = {**named, "predictor": predictor, "n": len(pairs), "seeds": pairs["seed"].nunique()}
            rows += [{**about, **row} for row in _statistics(pairs, predictor, draws, seed)]
    columns = ["model", "run", "final_set", "predictor", "statistic", "value", "low", "high", "n", "seeds"]
    return pd.DataFrame(rows, columns=columns)


def _statistics(pairs: pd.DataFrame, predictor: str, draws: int, seed: int) -> list[dict[str, object]]:
    """nan with fewer than three pairs."""
    if len(pairs) < 3:
        nothing = {"value": math.nan, "low": math.nan, "high": math.nan}
        return [{"statistic": "rho", **nothing}]
    values = _of_resamples(pairs, predictor, np.ones((1, len(pairs))))
    resampled = _of_resamples(pairs, predictor, block_weights(pairs["seed"].to_numpy(), draws, seed))
    rows = []
    for name, (value,) in values.items():
        low, high = percentiles(resampled[name])
        rows.append({"statistic": name, "value": float(value), "low": low, "high": high})
    return rows


def _of_resamples(pairs: pd.DataFrame, predictor: str, weight_DN: np.ndarray) -> dict[str, np.ndarray]:
    x, y = pairs[predictor].to_numpy(np.float64), pairs["change"].to_numpy(np.float64)
    ranked = {name: Ranked(pairs[name].to_numpy(np.float64)) for name in ("change", predictor, *BASELINES)}

    def rho(one: str, other: str) -> np.ndarray:
        return rank_correlation(ranked[one], ranked[other], weight_DN)

    own = rho("change", predictor)
    found = {"rho": own, "slope": (weight_DN @ (x * y)) / (weight_DN @ x**2)}
    for name in BASELINES:
        of_baseline = rho("change", name)
        found[f"rho_{name}"] = of_baseline
        found[f"over_{name}"] = own - np.abs(of_baseline)
        found[f"partial_{name}"] = _partial(own, of_baseline, rho(predictor, name))
    return found


def _partial(xy: np.ndarray, xz: np.ndarray, yz: np.ndarray) -> np.ndarray:
    """Correlation of x and y with z taken out of both; nan where z says all of one."""
    left = (1 - xz**2) * (1 - yz**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(left > 1e-12, (xy - xz * yz) / np.sqrt(left), np.nan))


def without_state(changes: pd.DataFrame) -> Sequence[str]:
    """A line per training with pairs of checkpoints that AdamW's prediction is missing for."""
    missing = changes[changes["predicted_adamw"].isna()]
    return [
        f"{model}/{run} seed {seed}, {final_set}: no prediction of AdamW's steps from step "
        f"{', '.join(map(str, sorted(group['step'])))} on: a checkpoint at an end of the interval has no optimizer "
        "state (step 0 never has; others: train them with it) or was probed with `predict: false`"
        for (model, run, seed, final_set), group in missing.groupby(OF_RUN)
    ]

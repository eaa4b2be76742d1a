"""Token by token: the predicted against the realised change of log π between neighbouring probed checkpoints.

A step of gradient descent of size η changes log π(y_t) of a token by η·d_t, d_t its drift, to first order; a step of
AdamW by η times its drift along P⁻¹∇L, which makes it nats that can be compared. Sums over the optimizer steps of the
interval are those of `prediction`. Two sides: the tokens of D′, which are no training data, and offline those of D,
whose pairs are the same at every checkpoint (roll-outs are not) and which have drifts of AdamW only.

On D the prediction holds each token's pull on itself: it is by the mean gradient of the pairs probed, in which a pair
has the weight 1/n, while training gave it that of one pair among all there are. So slopes on D lean towards 0, and
correlations are helped or harmed by how many pairs are probed; D′ has nothing of this.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from po_dynamics.dynamics.alignment import Probe
from po_dynamics.dynamics.coefficients import component_masks
from po_dynamics.dynamics.observables.resampling import Ranked, cluster_weights, percentiles, rank_correlation
from po_dynamics.dynamics.observables.trainings import Rates, of_run, trainings
from po_dynamics.errors import InputError

DRAWS = 200  # of responses; each ranks every token anew
BINS = 20  # of as many tokens each, by prediction
PREDICTORS = ("predicted", "predicted_adamw")
COMPONENTS = ("TOT", "POS", "NEG", "TOP", "MID", "BOT")
_TOKEN = ["sample_id", "role", "position", "token_id"]
_AT_ONCE = 2**20  # numbers in memory per array while ranks are resampled


@dataclass
class Tokens:
    """Tokens of D or of D′ over one interval of a training."""

    keys: dict[str, Any]  # model, run, seed, final_set, step, next_step
    set: str  # train (D) or final (D′)
    table: pd.DataFrame  # sample_id, realised, predicted, predicted_adamw
    masks: Mapping[str, np.ndarray]  # the tokens of each component, at the earlier checkpoint


def intervals(probes: Sequence[Probe], rates: Mapping[tuple[str, str, int], Rates]) -> Iterator[Tokens]:
    """The tokens of every interval between neighbouring probed checkpoints, in order."""
    for run in trainings(probes):
        for earlier, later in pairwise(run):
            own = of_run(rates, earlier.keys)
            yield _final(earlier, later, own)
            if earlier.tables.metadata["family"] == "offline":
                yield _train(earlier, later, own)


def _keys(earlier: Probe, later: Probe) -> dict[str, Any]:
    return {**earlier.keys, "next_step": later.keys["step"]}


def _final(earlier: Probe, later: Probe, rates: Rates) -> Tokens:
    then, now = earlier.tables.drifts, later.tables.drifts
    table = _changes(earlier, later, then, now, rates, {"predicted": "drift_TOT", "predicted_adamw": "drift_adamw"})
    return Tokens(_keys(earlier, later), "final", table, {"TOT": np.ones(len(table), dtype=bool)})


def _train(earlier: Probe, later: Probe, rates: Rates) -> Tokens:
    """Groups by weight are left out where all weights are equal."""
    then, now = earlier.tables.scores, later.tables.scores
    table = _changes(earlier, later, then, now, rates, {"predicted_adamw": "drift_adamw"})
    weight = then["weight"].to_numpy()
    masks = component_masks(then, weight)
    if np.ptp(weight) == 0:
        masks = {name: mask for name, mask in masks.items() if name in ("TOT", "POS", "NEG")}
    return Tokens(_keys(earlier, later), "train", table, masks)


def _changes(
    earlier: Probe, later: Probe, then: pd.DataFrame, now: pd.DataFrame, rates: Rates, drifts: Mapping[str, str]
) -> pd.DataFrame:
    """Realised and predicted changes of log π; InputError where the two checkpoints were probed with other samples."""
    if len(then) != len(now) or not all(np.array_equal(then[name], now[name]) for name in _TOKEN):
        keys = earlier.keys
        raise InputError(
            f"{keys['model']}/{keys['run']} seed {keys['seed']}: the probes of steps {keys['step']} and "
            f"{later.keys['step']} are of other samples, so changes of their log-probs mean nothing; probe the run "
            "again with one configuration"
        )
    weights = rates.between(earlier.keys["step"], later.keys["step"])
    then, now = then.reset_index(drop=True), now.reset_index(drop=True)
    table = pd.DataFrame({"sample_id": then["sample_id"], "realised": now["logprob"] - then["logprob"]})
    for name in PREDICTORS:
        table[name] = weights(then[drifts[name]], now[drifts[name]]) if name in drifts else math.nan
    return table


# --------------------------------------------------------------------------------------------------- what it is worth


def token_prediction(tokens: Iterable[Tokens], draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """`token_prediction.parquet`, a row per statistic of each interval, and of all intervals and seeds of a run.

    `model, run, final_set, seed, step, next_step, set, component, predictor, statistic, value, low, high, n_tokens,
    n_samples`; `seed`, `step` and `next_step` are <NA> for all together. Statistics: `slope_origin` and `slope` of the
    realised on the predicted change, through the origin and by least squares; `rho` (Spearman); `signs_right`, the
    share of tokens that moved as predicted, `signs_base`, that of the commoner direction, and `signs_over`, their
    difference. 95 % intervals resample prompts of D′ or pairs of D, with all their tokens, intervals and seeds; the
    trainings are held fixed.
    """
    rows = []
    for parts, keys in _groups(tokens):
        for component in COMPONENTS:
            for predictor in PREDICTORS:
                table = _select(parts, component, predictor)
                if len(table) > 1:
                    named = {**keys, "set": parts[0].set, "component": component, "predictor": predictor}
                    rows += [{**named, **row} for row in _statistics(table, predictor, draws, seed)]
    whole = ["seed", "step", "next_step"]
    return pd.DataFrame(rows, columns=_COLUMNS).astype(dict.fromkeys(whole, "Int64"))


_COLUMNS = ["model", "run", "final_set", "seed", "step", "next_step", "set", "component", "predictor", "statistic"]
_COLUMNS += ["value", "low", "high", "n_tokens", "n_samples"]


def _groups(tokens: Iterable[Tokens]) -> Iterator[tuple[list[Tokens], dict[str, Any]]]:
    """Each interval, then all of a run together."""
    runs: dict[tuple[Any, ...], list[Tokens]] = {}
    for part in tokens:
        yield [part], part.keys
        runs.setdefault((part.keys["model"], part.keys["run"], part.keys["final_set"], part.set), []).append(part)
    for (model, run, final_set, _), parts in runs.items():
        yield (
            parts,
            {"model": model, "run": run, "final_set": final_set, "seed": pd.NA, "step": pd.NA} | {"next_step": pd.NA},
        )


def _select(parts: Sequence[Tokens], component: str, predictor: str) -> pd.DataFrame:
    """The tokens of a component that have the prediction."""
    chosen = [part.table[part.masks[component]] for part in parts if component in part.masks]
    if not chosen:
        return pd.DataFrame()
    return pd.concat(chosen, ignore_index=True).dropna(subset=predictor)


def _statistics(table: pd.DataFrame, predictor: str, draws: int, seed: int) -> list[dict[str, Any]]:
    """Values with intervals; `table` has at least two tokens."""
    cluster_N, ids = pd.factorize(table["sample_id"])
    x_N, y_N = (table[name].to_numpy(np.float64) for name in (predictor, "realised"))
    one, drawn = np.ones((1, len(ids))), cluster_weights(len(ids), draws, seed)
    values, resampled = (_of_resamples(x_N, y_N, cluster_N, weight_DC) for weight_DC in (one, drawn))
    rows: list[dict[str, Any]] = []
    for name, (value,) in values.items():
        low, high = percentiles(resampled[name])
        about = {"n_tokens": len(table), "n_samples": len(ids)}
        rows.append({"statistic": name, "value": float(value), "low": low, "high": high, **about})
    return rows


def _of_resamples(
    x_N: np.ndarray, y_N: np.ndarray, cluster_N: np.ndarray, weight_DC: np.ndarray
) -> dict[str, np.ndarray]:
    """Every statistic of every resample of clusters."""
    rose, fell = y_N > 0, y_N < 0
    right = np.sign(x_N) * np.sign(y_N) > 0
    parts = (np.ones_like(x_N), x_N, y_N, x_N * x_N, x_N * y_N, rose, fell, right)
    sums_CK = np.stack([np.bincount(cluster_N, part, minlength=weight_DC.shape[1]) for part in parts], axis=1)
    n, x, y, xx, xy, up, down, hits = (weight_DC @ sums_CK).T
    with np.errstate(invalid="ignore", divide="ignore"):
        slopes = {"slope_origin": xy / xx, "slope": (n * xy - x * y) / (n * xx - x * x)}
        signs = {"signs_right": hits / (up + down), "signs_base": np.maximum(up, down) / (up + down)}
    signs["signs_over"] = signs["signs_right"] - signs["signs_base"]
    return {**slopes, "rho": _rho(x_N, y_N, cluster_N, weight_DC), **signs}


def _rho(x_N: np.ndarray, y_N: np.ndarray, cluster_N: np.ndarray, weight_DC: np.ndarray) -> np.ndarray:
    x, y = Ranked(x_N), Ranked(y_N)
    chunks = np.array_split(weight_DC, math.ceil(len(weight_DC) * len(x_N) / _AT_ONCE))
    return np.concatenate([rank_correlation(x, y, chunk[:, cluster_N]) for chunk in chunks if len(chunk)])


# --------------------------------------------------------------------------------------------------------- to be drawn


def token_bins(tokens: Iterable[Tokens], bins: int = BINS) -> pd.DataFrame:
    """`token_bins.parquet`: realised changes of tokens of about the same predicted change, all of a run together.

    `model, run, final_set, set, component, predictor, bin, n, predicted, q25, median, q75, mean`: bins of as many
    tokens each, in order; `predicted` is the median of the bin, the others are of the realised change, in nats.
    """
    rows = []
    for parts, keys in _groups(tokens):
        if keys["step"] is not pd.NA:
            continue
        for component in COMPONENTS:
            for predictor in PREDICTORS:
                table = _select(parts, component, predictor)
                named = {key: keys[key] for key in ("model", "run", "final_set")}
                named |= {"set": parts[0].set, "component": component, "predictor": predictor}
                rows += [{**named, **row} for row in _binned(table, predictor, bins)]
    columns = ["model", "run", "final_set", "set", "component", "predictor", "bin", "n", "predicted"]
    return pd.DataFrame(rows, columns=[*columns, "q25", "median", "q75", "mean"])


def _binned(table: pd.DataFrame, predictor: str, bins: int) -> Iterator[dict[str, Any]]:
    if table.empty:
        return
    ordered = table.sort_values(predictor, kind="stable")
    for place, rows in enumerate(np.array_split(np.arange(len(ordered)), min(bins, len(ordered)))):
        realised = ordered["realised"].iloc[rows]
        q25, median, q75 = realised.quantile([0.25, 0.5, 0.75])
        predicted = float(ordered[predictor].iloc[rows].median())
        yield {"bin": place, "n": len(rows), "predicted": predicted, "mean": float(realised.mean())} | {
            "q25": float(q25),
            "median": float(median),
            "q75": float(q75),
        }

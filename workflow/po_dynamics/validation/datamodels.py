"""The linear datamodelling score of G: do the scores of pairs predict what trainings on halves of them bring?

Park et al. 2023 (arXiv 2303.14186), Definition 2.3: Spearman's ρ, over random subsets, of the output of the model that
was trained on a subset and of the sum of the scores in it. The output here is the mean NLL of the full training's D′.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from po_dynamics.dynamics.alignment import Probe
from po_dynamics.dynamics.coefficients import PAIR_ROLES
from po_dynamics.errors import InputError
from po_dynamics.validation.statistics import Estimate, percentiles, rank_correlation, resampled, spearman

SCORES = {  # name of a score → column of `scores.parquet`, and whether it is of the last checkpoint alone
    "plain": ("score", False),
    "adamw": ("score_adamw", False),
    "last": ("score", True),
    "last_adamw": ("score_adamw", True),
}
BASELINE = "lengths"  # without any gradient: tokens of the chosen minus those of the rejected response


class Halves(NamedTuple):
    """What the trainings on subsets found."""

    losses: pd.DataFrame  # arm, id, nll of every response of D′
    members: pd.DataFrame  # arm, pair


def pair_scores(probes: Sequence[Probe], rates: pd.Series) -> pd.DataFrame:
    """What each pair adds to the NLL of D′ in the full training, nats: columns `SCORES` and `BASELINE`, index `pair`.

    −Σ η·(its share of G), over the optimizer steps: a checkpoint stands for the steps around it. `rates` are the
    learning rates by step of `training.csv`. A checkpoint without a score (AdamW's before its first step) is left out,
    and so is a score that no checkpoint has.
    """
    scores = {}
    for name, (column, last) in SCORES.items():
        shares = {int(probe.keys["step"]): share for probe in probes if (share := _shares(probe, column)) is not None}
        if shares:
            steps = sorted(shares)[-1:] if last else sorted(shares)
            weights = step_weights(steps, rates)
            scores[name] = sum(-weight * shares[step] for step, weight in zip(steps, weights, strict=True))
    return pd.DataFrame({**scores, BASELINE: _length_differences(probes[0])}).rename_axis("pair")


def _length_differences(probe: Probe) -> pd.Series:
    """Tokens of the chosen minus tokens of the rejected response of every pair."""
    train = probe.tables.scores[probe.tables.scores["role"].isin(PAIR_ROLES)]
    return train["role"].map({"chosen": 1, "rejected": -1}).groupby(train["sample_id"]).sum()


def _shares(probe: Probe, column: str) -> pd.Series | None:
    """The summands of G by pair, −Σ_t c_t s_t over its tokens; None where the scores are not there."""
    scores = probe.tables.scores
    train = scores[scores["role"].isin(PAIR_ROLES)]
    if column not in train or train[column].isna().any():
        return None
    terms = -train["coefficient"].astype(float) * train[column].astype(float)
    return terms.groupby(train["sample_id"]).sum()


def step_weights(steps: Sequence[int], rates: pd.Series) -> np.ndarray:
    """Σ η that each checkpoint stands for: half of what lies between two for either, all that lies outside for the end.

    `rates` by step: that of step t is of the update from t − 1 to t.
    """
    weights = np.zeros(len(steps))
    for t, rate in zip(rates.index.to_numpy(), rates.to_numpy(), strict=True):
        after = int(np.searchsorted(steps, t))  # the first checkpoint at or after the update
        for k in (max(after - 1, 0), min(after, len(steps) - 1)):
            weights[k] += rate / 2
    return weights


def predictions(scores: pd.DataFrame, halves: Halves) -> pd.DataFrame:
    """A row per half, index `arm`: `nll` (mean over D′) and, by score, the predicted change of the NLL in training.

    A half is trained for as many steps as the whole, so each of its pairs counts N / |half| times.

    Raises:
        InputError: a pair that was not probed.
    """
    if missing := set(halves.members["pair"]) - set(scores.index):
        raise InputError(
            f"{len(missing)} pairs of the halves have no score, such as {min(missing)}; set probe.samples to all pairs"
        )
    sums = scores.loc[halves.members["pair"]].groupby(halves.members["arm"].to_numpy()).sum()
    sizes = halves.members.groupby("arm").size()
    table = sums.mul(len(scores) / sizes, axis=0)
    table.insert(0, "nll", halves.losses.groupby("arm")["nll"].mean())
    return table.rename_axis("arm")


def datamodelling_scores(scores: pd.DataFrame, halves: Halves, seed: int = 0) -> pd.DataFrame:
    """`score, rho, low, high, low_responses, high_responses, n, n_responses`, a row per score.

    `low` to `high` resamples trainings. `low_responses` to `high_responses` resamples the responses of D′ in what
    happened, not in the scores, whose v is the mean over all of D′.
    """
    predicted = predictions(scores, halves)
    losses_AR = halves.losses.pivot(index="arm", columns="id", values="nll").loc[predicted.index].to_numpy()
    draws = resampled(len(predicted), seed)
    means_DA = np.stack([losses_AR[:, index].mean(1) for index in resampled(losses_AR.shape[1], seed)])
    rows = []
    for name in predicted.columns.drop("nll"):
        values = predicted[name].to_numpy()
        rho = rank_correlation(values, predicted["nll"].to_numpy(), draws)
        of_responses = percentiles(rho.value, spearman(np.broadcast_to(values, means_DA.shape), means_DA))
        rows.append({"score": name, **_named(rho, of_responses), "n": len(values), "n_responses": losses_AR.shape[1]})
    return pd.DataFrame(rows)


def _named(over_trainings: Estimate, over_responses: Estimate) -> Mapping[str, float]:
    interval = {"rho": over_trainings.value, "low": over_trainings.low, "high": over_trainings.high}
    return {**interval, "low_responses": over_responses.low, "high_responses": over_responses.high}

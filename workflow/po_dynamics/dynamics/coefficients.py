"""From a token-score table to the coefficients of any objective: the probe and every later re-slicing call this."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from po_dynamics.errors import InputError
from po_dynamics.objectives.components import components, groups, thresholds
from po_dynamics.objectives.declaration import Objective
from po_dynamics.objectives.pairs import Pairs
from po_dynamics.objectives.tokens import Tokens

if TYPE_CHECKING:
    from torch import Tensor

PAIR_ROLES = ("chosen", "rejected")


class Terms(NamedTuple):
    """Per row of the table, float64: c_t (1/N included), the weight ω or |Â|, the row's share of the summed loss."""

    coefficient: np.ndarray
    weight: np.ndarray
    loss: np.ndarray


def reweight(scores: pd.DataFrame, objective: Objective, step: int) -> Terms:
    """Coefficients of an objective on the tokens of `scores.parquet`.

    Needs `sample_id, role, logprob` and, offline, `ref_logprob` (and `reward`, where the objective does), online,
    `advantage`. Offline, N counts pairs and the
    loss of a pair is spread evenly over its tokens; online, N counts tokens and the ratio is 1: the samples were drawn
    at this very checkpoint.

    Raises:
        InputError: a table of the other family, or coefficients that are not finite (no reference log-probs).
    """
    offline = set(scores["role"]) <= set(PAIR_ROLES)
    if offline != (objective.family == "offline"):
        seen = "preference pairs" if offline else "roll-outs"
        raise InputError(f"{objective.name} is an {objective.family} objective, but the table holds {seen}")
    terms = (_offline if offline else _online)(scores, objective, step)
    if not np.isfinite(terms.coefficient).all():
        bad = scores["sample_id"].to_numpy()[~np.isfinite(terms.coefficient)][0]
        raise InputError(
            f"{objective.name}: the coefficient of sample {bad!r} is not finite; "
            "its log-probs, reference log-probs or advantages are missing or broken"
        )
    return terms


def _offline(scores: pd.DataFrame, objective: Objective, step: int) -> Terms:
    import torch

    pair, ids = pd.factorize(scores["sample_id"])
    chosen, count = (scores["role"] == "chosen").to_numpy(), len(ids)

    def total(values: np.ndarray, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.bincount(pair[rows], values[rows], minlength=count))

    logps, references = scores["logprob"].to_numpy(np.float64), scores["ref_logprob"].to_numpy(np.float64)
    ones = np.ones(len(scores))
    lengths = [total(ones, rows) for rows in (chosen, ~chosen)]
    sums = (total(values, rows) for values in (logps, references) for rows in (chosen, ~chosen))
    pairs = Pairs(*sums, *lengths, *_rewards(scores, pair, chosen, count))
    terms = objective(pairs, step)
    positive, negative, weight, loss = (values.numpy() for values in terms)
    coefficient = np.where(chosen, positive[pair], negative[pair]) / count
    return Terms(coefficient, weight[pair], loss[pair] / np.bincount(pair)[pair])


def _rewards(scores: pd.DataFrame, pair: np.ndarray, chosen: np.ndarray, count: int) -> list[Tensor]:
    """Rewards (N,) of the chosen and of the rejected responses; none where the table has none."""
    import torch

    if "reward" not in scores:
        return []
    rewards = np.full((2, count), np.nan)
    rewards[(~chosen).astype(int), pair] = scores["reward"]
    return list(torch.from_numpy(rewards))


def _online(scores: pd.DataFrame, objective: Objective, step: int) -> Terms:
    import torch

    logps_1T, advantages_1T = (
        torch.from_numpy(scores[column].to_numpy(np.float64).copy())[None] for column in ("logprob", "advantage")
    )
    tokens = Tokens(logps_1T, logps_1T, advantages_1T, torch.ones_like(logps_1T, dtype=torch.bool))
    coefficient, weight, loss = (values[0].numpy() for values in objective(tokens, step))
    return Terms(coefficient / len(scores), weight, loss)


def component_masks(scores: pd.DataFrame, weight: np.ndarray, count: int = 3) -> dict[str, np.ndarray]:
    """Rows of each component: TOT; POS, NEG (Eqs. 6, 7, 12, 13); TOP, MID, BOT (Eqs. 8–10, 14–16) or Qk … Q1.

    The quantiles are over the pairs (offline) or tokens (online) of all of D.
    """
    offline = set(scores["role"]) <= set(PAIR_ROLES)
    positive = (scores["role"] == "chosen").to_numpy() if offline else scores["advantage"].to_numpy() >= 0
    counted = weight[~scores["sample_id"].duplicated().to_numpy()] if offline else weight
    quantiles = thresholds(counted, count)
    return {
        "TOT": np.ones(len(scores), dtype=bool),
        **components(positive),
        **groups(weight, None, quantiles),
    }


def batch_sizes(scores: pd.DataFrame) -> pd.Series:
    """Pairs (offline) or tokens (online) per mini-batch."""
    if set(scores["role"]) <= set(PAIR_ROLES):
        return scores.groupby("batch")["sample_id"].nunique()
    return scores.groupby("batch").size()

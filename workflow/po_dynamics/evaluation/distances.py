"""How far sampled policies are from their target π^τ, over training: KL(π ‖ π^τ), log Z with its effective sample size.

The logarithm of an unbiased estimate of Z is too low on average, the more so the fewer samples carry it, and with it
KL(π ‖ π^τ): "at least" where the effective sample size is small. What two policies differ by, the *fall* from the SFT
model's distance, KL(π_SFT ‖ π^τ) − KL(π ‖ π^τ) = (E_π[r] − E_ref[r])/τ − KL(π ‖ π_ref), needs no Z at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import logsumexp
from scipy.stats import bootstrap

DRAWS = 2000  # bootstrap samples over prompts
NEAR = 0.1  # share of the SFT model's distance below which a target counts as reached
REFERENCE = "sft"  # under this name the samples of π_ref are stored
CLAIMS = ["claim", "model", "verdict", "statistic", "low", "high", "rule"]


class Estimate(NamedTuple):
    """A log-mean of weights, nats."""

    value: float  # log of the mean: low on average
    jackknife: float  # without the bias of order 1/N; inf where one weight is all there is
    ess: float  # effective sample size (Σ w)²/Σ w² (Kong 1992)


def log_mean(log_weights_N: np.ndarray) -> Estimate:
    """log (Σ w / N) of N ≥ 2 weights w that are given by their logarithms."""
    n = len(log_weights_N)
    value = logsumexp(log_weights_N) - np.log(n)
    shares_N = np.exp(log_weights_N - value - np.log(n))
    with np.errstate(divide="ignore"):
        without_N = value + np.log1p(-np.minimum(shares_N, 1)) + np.log(n / (n - 1))
    return Estimate(float(value), float(n * value - (n - 1) * without_N.mean()), float(1 / (shares_N**2).sum()))


def partition(samples: pd.DataFrame, temperatures: Sequence[float]) -> pd.DataFrame:
    """log Z of every prompt at every τ, from samples of one model's policies (see `target.sample_policies`).

    `tau, id, log_z, log_z_jackknife, ess, n` from all proposals, weighted as drawn from their mixture, and
    `log_z_reference, ess_reference` from the samples of π_ref alone.
    """
    rows = []
    for key, drawn in samples[samples["proposal"]].groupby("id", sort=False):
        own = drawn[drawn["run"] == REFERENCE]
        for tau in temperatures:
            log_weights_N = drawn["ref_logp"] - drawn["mixture_logp"] + drawn["reward"] / tau
            found, alone = log_mean(log_weights_N.to_numpy()), log_mean((own["reward"] / tau).to_numpy())
            row = {"tau": tau, "id": key, "log_z": found.value, "log_z_jackknife": found.jackknife, "ess": found.ess}
            rows.append(row | {"n": len(drawn), "log_z_reference": alone.value, "ess_reference": alone.ess})
    return pd.DataFrame(rows)


def distances(
    samples: pd.DataFrame, log_z: pd.DataFrame, own: Mapping[str, float], late: Sequence[str], least_ess: float
) -> pd.DataFrame:
    """KL(π ‖ π^τ) of every sampled policy of one model at every τ of `log_z`, with 95 % intervals over prompts.

    A run that starts from the SFT model has its row at step 0 too, which is that of the SFT model (`run` "sft").

    Args:
        own: τ of each run's own target.
        late: runs that start from a checkpoint of another one.
        least_ess: effective sample size below which a prompt's log Z counts in `n_low_ess`.

    Returns:
        `run, seed, step, tau, own_tau`; `kl_to_target, low, high, kl_to_reference` (nats), `reward`; `fall, fall_low,
        fall_high` (nats), `remaining, remaining_low, remaining_high` (share of the SFT model's distance), `samples`
        (per prompt); `log_z, log_z_jackknife, log_z_reference` (means over prompts), `ess, ess_reference` (medians),
        `n_low_ess, prompts`.
    """
    policies: dict[Any, pd.DataFrame] = dict(list(samples.groupby(["run", "seed", "step"], sort=False)))
    reference = policies[REFERENCE, 0, 0]
    trained = dict.fromkeys((run, seed) for run, seed, _ in policies if run != REFERENCE and run not in late)
    policies |= {(run, seed, 0): reference for run, seed in trained}
    rows = []
    for tau in map(float, log_z["tau"].unique()):
        of_tau = log_z[log_z["tau"] == tau].set_index("id")
        for (run, seed, step), table in policies.items():
            about = {"run": run, "seed": seed, "step": step, "tau": tau, "own_tau": math.isclose(own.get(run, 0), tau)}
            rows.append(about | _measures(table, reference, of_tau["log_z"], tau) | _of_partition(of_tau, least_ess))
    return pd.DataFrame(rows).sort_values(["tau", "run", "seed", "step"], ignore_index=True)


def _mean(table: pd.DataFrame, column: str) -> pd.Series:
    """By prompt."""
    return table.groupby("id", sort=False)[column].mean()


def _measures(table: pd.DataFrame, reference: pd.DataFrame, log_z_X: pd.Series, tau: float) -> dict[str, float]:
    """Distance, its fall and what remains of it, from the samples of a policy and of the SFT model."""
    end, start = (_distance(of, log_z_X, tau) for of in (table, reference))
    low, high = interval((end,), np.mean)
    found = {"kl_to_target": end.mean(), "low": low, "high": high}
    found |= {"kl_to_reference": _mean(table, "kl").mean(), "reward": _mean(table, "reward").mean()}
    low, high = interval((start - end,), np.mean)
    found |= {"fall": (start - end).mean(), "fall_low": low, "fall_high": high}
    low, high = interval((end, start), _ratio)
    found |= {"remaining": _ratio(end, start), "remaining_low": low, "remaining_high": high}
    return found | {"samples": len(table) // len(log_z_X)}


def _distance(table: pd.DataFrame, log_z_X: pd.Series, tau: float) -> np.ndarray:
    """KL(π ‖ π_ref) − E_π[r]/τ + log Z of every prompt, in the order of `log_z_X`, (X,) nats."""
    return (_mean(table, "kl") - _mean(table, "reward") / tau + log_z_X).loc[log_z_X.index].to_numpy()


def _of_partition(of_tau: pd.DataFrame, least_ess: float) -> dict[str, float]:
    found = {name: of_tau[name].mean() for name in ("log_z", "log_z_jackknife", "log_z_reference")}
    found |= {name: of_tau[name].median() for name in ("ess", "ess_reference")}
    return found | {"n_low_ess": int((of_tau["ess"] < least_ess).sum()), "prompts": len(of_tau)}


def _ratio(one: np.ndarray, other: np.ndarray, axis: int = -1) -> Any:
    return one.mean(axis) / other.mean(axis)


def interval(data: tuple[np.ndarray, ...], statistic: Any) -> tuple[float, float]:
    """95 % percentile bootstrap interval over prompts, of which each array of `data` has a value each."""
    rng = np.random.default_rng(0)
    found = bootstrap(data, statistic, paired=True, n_resamples=DRAWS, method="percentile", rng=rng)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


# ---------------------------------------------------------------------------------------------------------- the claims


def judge(table: pd.DataFrame) -> pd.DataFrame:
    """`CLAIMS` of every model, from `distances` with a column `model`, by rules over the last checkpoints.

    Each training counts at its own τ; the statistic and interval shown are those of the training that fares worst.
    """
    ends = table[table["own_tau"]].sort_values("step").groupby(["model", "run", "seed"], sort=False).tail(1)
    rows = [row for _, of_model in ends.groupby("model", sort=False) for row in _judged(of_model)]
    return pd.DataFrame(rows, columns=CLAIMS)


def _judged(ends: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    """Approach (free of Z), then arrival, which a log Z that is too low makes easier: its refusal stands without it."""
    model, worst = ends["model"].iloc[0], ends.sort_values("fall_low").iloc[0]
    good, bad = (ends["fall_low"] > 0).all(), (ends["fall_high"] <= 0).any()
    claim = f"one target on the language model: {_listed(ends)} end nearer to π^τ, τ = β, than the SFT model"
    rule = "every training: fall of KL(π ‖ π^τ), interval > 0 (needs no log Z)"
    yield claim, model, _verdict(good, bad), worst["fall"], worst["fall_low"], worst["fall_high"], rule
    worst = ends.sort_values("remaining_high").iloc[-1]
    good = (ends["remaining_high"] < NEAR).all() & (ends["n_low_ess"] == 0).all()
    bad = (ends["remaining_low"] >= NEAR).any()
    shown = (worst[name] for name in ("remaining", "remaining_low", "remaining_high"))
    claim = f"and reach it: less than {NEAR:.0%} of the SFT model's distance remains"
    rule = f"every training: remaining share of KL(π ‖ π^τ), interval < {NEAR:g}, no prompt's log Z flagged"
    yield claim, model, _verdict(good, bad), *shown, rule


def _listed(ends: pd.DataFrame) -> str:
    names = sorted(set(ends["run"]))
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _verdict(good: Any, bad: Any) -> str:
    return "holds" if good else "does not hold" if bad else "open"

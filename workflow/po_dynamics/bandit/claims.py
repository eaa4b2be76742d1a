"""What the bandit says about claims of arXiv 2502.03095 (our reading of its abstract) and 2512.00778, by rules."""

from __future__ import annotations

from typing import Any

import pandas as pd

from po_dynamics.bandit.convergence import OF_REWARDS, interval
from po_dynamics.settings.bandit import ExactBandit

FAR = 10  # tolerances: further from its target than this, an objective is biased
AGREES = 0.95  # share of steps


def judge(
    ends: pd.DataFrame, law: pd.DataFrame, alignment: pd.DataFrame, signs: pd.DataFrame, settings: ExactBandit
) -> pd.DataFrame:
    """`claim, model, verdict, statistic, low, high, rule`; "holds", "does not hold" or "open", of the model "bandit".

    Intervals are 95 % bootstrap intervals over prompts; for a claim about all cases, the range over the cases.
    """
    rows = [_same_target(ends, settings), _slower(law), _bias(ends, settings), _shift(ends, settings)]
    rows += [_sign(signs), _exchange(alignment)]
    table = pd.DataFrame(rows, columns=["claim", "statistic", "low", "high", "rule", "verdict"]).assign(model="bandit")
    return table[["claim", "model", "verdict", "statistic", "low", "high", "rule"]]


def _above(claim: str, statistic: float, low: float, high: float, rule: str, bound: float) -> tuple[Any, ...]:
    """Holds where the whole interval is above the bound, does not where none of it is."""
    return claim, statistic, low, high, rule, "holds" if low > bound else "does not hold" if high <= bound else "open"


def _every(claim: str, tv: pd.Series, bound: float) -> tuple[Any, ...]:
    """One case that is not below the bound contradicts the claim; the statistic is the worst case."""
    rule = f"total variation at the end, every case < {bound:g}"
    return claim, tv.max(), tv.min(), tv.max(), rule, "holds" if tv.max() < bound else "does not hold"


def _same_target(ends: pd.DataFrame, settings: ExactBandit) -> tuple[Any, ...]:
    taken = ends[ends["objective"].isin(["bda", "ppo", *OF_REWARDS]) & (ends["coverage"] != "missing")]
    claim = "same target: BDA, PPO, RA, RDA and PRA, plain and posterior, reach π^τ where every response is covered"
    return _every(claim, taken["tv"], settings.tolerance)


def _slower(law: pd.DataFrame) -> tuple[Any, ...]:
    row = law.sort_values("low").iloc[0]
    claim = "slower for smaller τ: steps ∝ τ^−p, p of the case with the weakest dependence"
    return _above(claim, row["exponent"], row["low"], row["high"], "interval of p > 0", 0.0)


def _bias(ends: pd.DataFrame, settings: ExactBandit) -> tuple[Any, ...]:
    taken = ends[(ends["objective"] == "dpo") & (ends["coverage"] == "missing") & (ends["tau"] == settings.temperature)]
    claim = f"DPO is biased where the best {settings.missing} of {settings.arms} responses are in no pair"
    bound = FAR * settings.tolerance
    rule = f"mean total variation at the end, interval > {bound:g}"
    return _above(claim, taken["tv"].mean(), *interval(taken["tv"].to_numpy(), settings.seed), rule, bound)


def _shift(ends: pd.DataFrame, settings: ExactBandit) -> tuple[Any, ...]:
    taken = ends[(ends["objective"] == "pra") & (ends["variant"] == "posterior") & (ends["coverage"] == "policy")]
    claim = "the shift of PRA-P vanishes: on pairs that the policy samples, PRA reaches π^τ_ref at every τ"
    return _every(claim, taken["tv"], settings.tolerance)


def _sign(signs: pd.DataFrame) -> tuple[Any, ...]:
    taken = signs[(signs["objective"] == "dpo") & (signs["coverage"] == "uniform") & (signs["training"] == "exact")]
    row = taken[(taken["component"] == "TOT") & (taken["final"] == "greedy") & (taken["gap"] == 1)].iloc[0]
    claim = "the sign of G is that of the next change of log π(final response) (arXiv 2512.00778, DPO)"
    rule = f"share of exact steps, interval > {AGREES}"
    return _above(claim, row["agreement"], row["low"], row["high"], rule, AGREES)


def _exchange(alignment: pd.DataFrame) -> tuple[Any, ...]:
    taken = alignment[(alignment["objective"] == "dpo") & (alignment["coverage"] == "uniform")]
    taken = taken[(taken["training"] == "exact") & (taken["final"] == "greedy") & (taken["component"] == "POS")]
    first, last = taken.sort_values("step").iloc[[0, -1]].to_dict("records")
    claim = "DPO's positive learning serves the final response at first and works against it later (arXiv 2512.00778)"
    rule = "G of POS: interval at the first step > 0, at the last (shown) < 0"
    right = first["G_low"] > 0 > last["G_high"]
    wrong = first["G_high"] <= 0 or last["G_low"] >= 0
    verdict = "holds" if right else "does not hold" if wrong else "open"
    return claim, last["G"], last["G_low"], last["G_high"], rule, verdict

"""Why do both fall? log π of the chosen and the rejected responses over a run, and whether their own step explains it.

L's gradient on a mini-batch is −(g⁺ − g⁻), with g⁺ = −∇L_POS = Σ c⁺∇log π(y⁺)/n and g⁻ = ∇L_NEG = −Σ c⁻∇log π(y⁻)/n:
coefficients included (DPO: c⁺ = ω = −c⁻). A step η(g⁺ − g⁻) on it changes, to first order and with the weights held,

    the weighted mean of log π of its chosen responses by    η(‖g⁺‖² − ⟨g⁺, g⁻⟩),
    the weighted mean of log π of its rejected responses by  η(⟨g⁺, g⁻⟩ − ‖g⁻‖²).

So it lowers the chosen where ⟨g⁺, g⁻⟩ > ‖g⁺‖² and raises the rejected where ⟨g⁺, g⁻⟩ > ‖g⁻‖² (arXiv 2410.13828, for one
pair). What then happened until the next checkpoint is measured with the same weights, from the stored token scores.
Of runs on pairs only: online, D is another at every checkpoint.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from po_dynamics.dynamics.alignment import KEYS, Probe
from po_dynamics.dynamics.coefficients import PAIR_ROLES, batch_sizes
from po_dynamics.dynamics.observables.logps import entanglement
from po_dynamics.dynamics.observables.trainings import trainings
from po_dynamics.errors import InputError

COLUMNS = [*KEYS, "quantity", "value", "low", "high", "n"]
CELLS = ["held_and_did", "held_only", "did_only", "neither"]
CHECK = ["model", "run", "final_set", "role", "n", "n_batches", "n_seeds", *CELLS, "share_right", "base_rate"]
CHECK += [f"{name}{end}" for name in ("gain", "order") for end in ("", "_low", "_high")]
NORMS = {"chosen": "positive_norm", "rejected": "negative_norm"}
HOLDS = {"chosen": "lowers_chosen", "rejected": "raises_rejected"}  # the step on the mini-batch, by the condition
HAPPENED = {"chosen": "chosen_fell", "rejected": "rejected_rose"}  # by the next checkpoint
SIGNS = {"chosen": 1.0, "rejected": -1.0}  # of c where the loss raises the chosen and lowers the rejected
DRAWS, LEVEL = 2000, 0.95


def displacement(probes: Sequence[Probe]) -> pd.DataFrame:
    """`model, run, seed, step, final_set, quantity, value, low, high, n`; low and high bound 95 %.

    * Change of log π since the first probed checkpoint, in nats, of `chosen`, `rejected`, `chosen_argmax`,
      `rejected_argmax` (the most probable token at every position) and `greedy` (D′), each with `_per_response` or
      `_per_token`; intervals resample mini-batches, n is of responses or tokens.
    * Shares of n mini-batches, with Wilson intervals: `lowers_chosen`, `raises_rejected` (the condition),
      `chosen_fell`, `rejected_rose` (by the next checkpoint).
    * Means over n mini-batches, resampled: `positive_norm`, `negative_norm`, `cosine` (of g⁺ and g⁻).
    """
    rows: list[dict[str, Any]] = []
    for run in _trainings(probes):
        start = _log_probs(run[0])
        for probe in run:
            measured = [*_changes(start, _log_probs(probe)), *_shares(_conditions(probe), HOLDS), *_norms(probe)]
            rows += [{**probe.keys, **row} for row in measured]
        for earlier, later in pairwise(run):
            rows += [{**earlier.keys, **row} for row in _shares(_happened(earlier, later), HAPPENED)]
    return pd.DataFrame(rows, columns=COLUMNS)


def check(probes: Sequence[Probe]) -> pd.DataFrame:
    """Does the condition say what then happens? A row per run and role (`chosen` falls, `rejected` rises).

    `model, run, final_set, role, n` (mini-batches × intervals between checkpoints × seeds; only those whose norms were
    measured), `n_batches, n_seeds`, the cells `held_and_did, held_only, did_only, neither`, `share_right`, `base_rate`
    (right by always saying what was commoner), `gain` (their difference) and `order`: of two mini-batches of the same
    checkpoint and seed, one where it happened and one where it did not, how often the first has the larger
    ⟨g⁺, g⁻⟩ / ‖g‖² (0.5: the ratio says nothing). It tells something where the condition holds always or never too,
    and what all mini-batches share at a time of training does not count. Both with 95 % intervals that resample
    mini-batches, each with all its checkpoints and seeds; nan where nothing is to compare.
    """
    intervals = [_cases(*pair) for run in _trainings(probes) for pair in pairwise(run)]
    cases = [table for table in intervals if len(table)]
    if not cases:
        return pd.DataFrame(columns=CHECK)
    groups = pd.concat(cases, ignore_index=True).groupby(["model", "run", "final_set", "role"], sort=False)
    rows = [dict(zip(groups.keys, keys, strict=True)) | _checked(of_role) for keys, of_role in groups]
    return pd.DataFrame(rows, columns=CHECK)


def _trainings(probes: Iterable[Probe]) -> Iterator[list[Probe]]:
    """The checkpoints of each offline run, seed and final set, by step."""
    return trainings(probe for probe in probes if probe.tables.metadata["family"] == "offline")


def _pairs(probe: Probe) -> pd.DataFrame:
    """Token scores of the chosen and rejected responses."""
    scores = probe.tables.scores
    return scores[scores["role"].isin(PAIR_ROLES)]


# ------------------------------------------------------------------------------------------- log π since the beginning


def _log_probs(probe: Probe) -> pd.DataFrame:
    """`logp, response, token` summed (counted) over each mini-batch, by kind and batch."""
    groups = _pairs(probe).groupby(["role", "batch"])
    counts = pd.DataFrame({"response": groups["sample_id"].nunique(), "token": groups.size()}).astype(float)
    likely = groups["argmax_logprob"].sum().to_frame("logp").join(counts).rename(index="{}_argmax".format, level="role")
    tables = [groups["logprob"].sum().to_frame("logp").join(counts), likely, _final(probe)]
    return pd.concat([table.rename_axis(["kind", "batch"]) for table in tables])


def _final(probe: Probe) -> pd.DataFrame:
    """The same of D′."""
    batches = probe.tables.batches.query("set == 'final'").set_index("batch")
    samples = probe.tables.samples.query("set == 'final'")
    tokens = samples["response_ids"].map(len).groupby(samples["batch"]).sum()
    sums = {"logp": -batches["loss"] * batches["n"], "response": batches["n"], "token": tokens}
    return pd.concat({"greedy": pd.DataFrame(sums).astype(float)})


def _changes(start: pd.DataFrame, now: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Rows of the change of log π per response and per token, by kind."""
    change = (now["logp"] - start["logp"]).to_frame("change").join(now[["response", "token"]])
    for kind, table in change.dropna().groupby(level="kind", sort=False):
        for unit in ("response", "token"):
            about = {"quantity": f"{kind}_per_{unit}", "n": int(table[unit].sum())}
            yield about | _mean(table["change"].to_numpy(), table[unit].to_numpy())


# ------------------------------------------------------------------------------------ the condition, and what happened


def _pushed(scores: pd.DataFrame) -> pd.Series:
    """By role and batch, whether the loss raises (chosen) or lowers (rejected) the role, and nothing else.

    Not so where an objective has switched a part off, or turns the sign of c beyond its target (IPO, RDA): there the
    weighted mean is no mean of log π.
    """
    weight = scores["coefficient"] * scores["role"].map(SIGNS)
    groups = weight.groupby([scores["role"], scores["batch"]])
    return (groups.min() >= 0) & (groups.max() > 0)


def _conditions(probe: Probe) -> pd.DataFrame:
    """`role, batch, ratio, yes`: ⟨g⁺, g⁻⟩ / ‖g‖² with the role's own norm, and whether it is above 1, the condition.

    Of the mini-batches that were measured and are pushed.
    """
    table = _measured(probe)
    ratios = {role: table["inner"] / table[norm] ** 2 for role, norm in NORMS.items()}
    ratio = _of_pushed(pd.concat(ratios, names=["role"]).rename("ratio"), _pairs(probe))
    return ratio.assign(yes=ratio["ratio"] > 1)


def _measured(probe: Probe) -> pd.DataFrame:
    """`inner, positive_norm, negative_norm, cosine` by mini-batch; those without norms of both parts are left out."""
    table = entanglement(probe)
    names = ["batch", "inner", *NORMS.values(), "cosine"]
    return table.reindex(columns=names).set_index("batch").dropna()


def _happened(earlier: Probe, later: Probe) -> pd.DataFrame:
    """`role, batch, yes`: whether the weighted log π of the chosen fell, of the rejected rose, with earlier's weights.

    Raises:
        InputError: the checkpoints were probed on different samples.
    """
    before, key = _pairs(earlier), ["sample_id", "role", "position"]
    both = before.merge(_pairs(later)[[*key, "logprob"]], on=key, suffixes=("", "_later"), validate="one_to_one")
    if len(both) != len(before):
        raise InputError(
            f"{earlier.keys['run']}, seed {earlier.keys['seed']}: steps {earlier.keys['step']} and "
            f"{later.keys['step']} were probed on different pairs; probe the run again"
        )
    # c is positive for the chosen, negative for the rejected: a sum below 0 is a fall of the one, a rise of the other
    change = (both["coefficient"] * (both["logprob_later"] - both["logprob"])).groupby([both["role"], both["batch"]])
    return _of_pushed((change.sum() < 0).rename("yes"), before)


def _of_pushed(values: pd.Series, scores: pd.DataFrame) -> pd.DataFrame:
    """`role, batch` and the value of those that are pushed."""
    kept = _pushed(scores).reindex(values.index, fill_value=False)
    return values[kept].rename_axis(["role", "batch"]).reset_index()


def _shares(table: pd.DataFrame, names: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The share of mini-batches with its Wilson interval, by role."""
    for role, yes in table.groupby("role")["yes"]:
        test = binomtest(int(yes.sum()), len(yes))
        low, high = test.proportion_ci(LEVEL, method="wilson")
        share = {"value": test.statistic, "low": float(low), "high": float(high)}
        yield {"quantity": names[str(role)], **share, "n": len(yes)}


def _norms(probe: Probe) -> Iterator[dict[str, Any]]:
    """Means over mini-batches, weighted by their pairs."""
    table = _measured(probe)
    if table.empty:
        return
    weights = batch_sizes(_pairs(probe)).reindex(table.index).to_numpy(np.float64)
    for name in (*NORMS.values(), "cosine"):
        yield {"quantity": name, "n": len(table)} | _mean(table[name].to_numpy() * weights, weights)


# ----------------------------------------------------------------------------------------------------------- the check


def _cases(earlier: Probe, later: Probe) -> pd.DataFrame:
    """`ratio, held, did` of each mini-batch and role between two checkpoints, with the keys of the earlier."""
    held, did = _conditions(earlier), _happened(earlier, later)
    table = held.merge(did, on=["role", "batch"], suffixes=("_held", "_did"))
    table = table.rename(columns={"yes_held": "held", "yes_did": "did"}).astype({"held": bool, "did": bool})
    return table.assign(**earlier.keys)


def _checked(cases: pd.DataFrame) -> dict[str, Any]:
    """Cells, shares and intervals of one run and role."""
    held, did = cases["held"], cases["did"]
    cells = {"held_and_did": held & did, "held_only": held & ~did, "did_only": ~held & did, "neither": ~held & ~did}
    right, commoner = held == did, did == (did.mean() > 0.5)
    counts = {"n": len(cases), "n_batches": cases["batch"].nunique(), "n_seeds": cases["seed"].nunique()}
    found: dict[str, Any] = counts | {name: int(cell.sum()) for name, cell in cells.items()}
    found |= {"share_right": right.mean(), "base_rate": commoner.mean()}
    by_batch = (right.astype(float) - commoner).groupby(cases["batch"]).agg(["sum", "size"])
    gain = _mean(by_batch["sum"].to_numpy(), by_batch["size"].to_numpy(np.float64))
    return found | _named("gain", gain) | _named("order", _order(cases))


def _order(cases: pd.DataFrame) -> dict[str, float]:
    """The share of pairs of one checkpoint, one that did and one that did not, where the first has the larger ratio."""
    tables = {name: cases.pivot(index="batch", columns=["seed", "step"], values=name) for name in ("ratio", "did")}
    ratio_BS, did_BS = (tables[name].to_numpy(np.float64) for name in tables)

    def share(weights_DB: np.ndarray) -> np.ndarray:
        above_D, pairs_D = np.zeros((2, len(weights_DB)))
        for ratio_B, did_B in zip(ratio_BS.T, did_BS.T, strict=True):
            order = np.argsort(ratio_B)[: np.isfinite(ratio_B).sum()]  # missing mini-batches come last
            did_DB, not_DB = weights_DB[:, order] * did_B[order], weights_DB[:, order] * (1 - did_B[order])
            above_D += (did_DB * not_DB.cumsum(1)).sum(1)
            pairs_D += did_DB.sum(1) * not_DB.sum(1)
        return np.divide(above_D, pairs_D, out=np.full_like(above_D, math.nan), where=pairs_D > 0)

    count = len(ratio_BS)
    return {"value": float(share(np.ones((1, count)))[0])} | _interval(share(_draws(count)))


def _mean(sums_B: np.ndarray, weights_B: np.ndarray) -> dict[str, float]:
    """Σ sums / Σ weights over mini-batches, with the interval of resampling them."""
    draws_DB = _draws(len(sums_B))
    return {"value": float(sums_B.sum() / weights_B.sum())} | _interval((draws_DB @ sums_B) / (draws_DB @ weights_B))


@functools.lru_cache(maxsize=8)
def _draws(count: int) -> np.ndarray:
    """How often each of `count` mini-batches is in each bootstrap sample (D, B); the same for all quantities."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=DRAWS).astype(np.float64)


def _interval(values_D: np.ndarray) -> dict[str, float]:
    """Percentiles of the samples that have a value."""
    finite = values_D[np.isfinite(values_D)]
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(finite) else (math.nan, math.nan)
    return {"low": float(low), "high": float(high)}


def _named(name: str, found: dict[str, float]) -> dict[str, float]:
    return {name: found["value"], f"{name}_low": found["low"], f"{name}_high": found["high"]}

"""A report card of a judge: what it gets right against true labels, and what it does that no truth can explain."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pandas as pd

from po_dynamics.errors import InputError
from po_dynamics.evaluation.reliability.agreement import verdicts
from po_dynamics.evaluation.reliability.judgements import PAIR, labels_of

BINS = 10  # of probabilities, for the calibration error
DRAWS = 2000
LEVEL = 0.95
MARKS = (
    *("missing", "accuracy", "kappa", "first_slot", "order_consistency", "longer_at_equal_quality", "self_consistency"),
    *("brier", "calibration_error", "intransitive"),
)
Estimate = dict[str, float]  # value, low, high, n


def report_card(judged: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """The marks of a judge.

    Args:
        judged: its judgements, a row each (see `judgements`), `output_1` being the answer that was shown first. Both
            orders of a pair show the preference for a place; the same order twice, how consistent the judge is with
            itself; three answers to an instruction, each against each, whether it contradicts itself.
        labels: true ones of the same pairs, in any order; several of one pair (annotators) are averaged.
            Without any, the marks that need them are NaN.

    Returns:
        `mark, value, low, high, n`: shares in [0, 1] and their 95 % bootstrap interval over instructions, NaN where
        there was nothing to measure. `missing` is of all judgements, the other marks of those that have a verdict:

        * `accuracy`: same side as the label, of pairs where the label takes a side; a tie of the judge counts half;
        * `kappa`: Cohen's, of win, tie and loss against all labels;
        * `first_slot`: mean probability of the answer shown first, over pairs shown in both orders; 0.5 is fair;
        * `order_consistency`: pairs with the same verdict in both orders;
        * `longer_at_equal_quality`: mean probability of the longer answer where the label is a tie; 0.5 is fair;
        * `self_consistency`: pairs that were asked in the same order again, with the same verdict;
        * `brier`, `calibration_error`: of the probabilities, where the label takes a side: mean squared error, and
          mean distance between confidence and accuracy over `BINS` bins of confidence (Naeini et al. 2015);
        * `intransitive`: of instructions' triples of answers that are judged each against each with three clear
          verdicts, those that go in a circle. A judge who flips coins has 0.25.

    Raises:
        InputError: no judged pair has a label.
    """
    given = judged.dropna(subset="preference").reset_index(drop=True)
    given["label"] = labels_of(given, labels)
    labelled = given.dropna(subset="label")
    if labelled.empty and not labels.empty:
        raise InputError(
            f"none of the {len(given)} judged pairs has a label: instructions and outputs must be the same texts"
        )
    means = {
        "missing": judged.assign(value=judged["preference"].isna()),
        **_against_labels(labelled),
        **_by_order(given),
        "self_consistency": _asked_again(given),
        "intransitive": triples(given),
    }
    marks = {name: _estimate(table, table[["value"]].to_numpy(float), _mean) for name, table in means.items()}
    marks["kappa"] = _estimate(labelled, _confusions(labelled), _kappa)
    sided = labelled[labelled["label"] != 0.5]
    marks["calibration_error"] = _estimate(sided, _calibration(sided), _calibration_error)
    return pd.DataFrame([{"mark": name, **marks[name]} for name in MARKS])


def _against_labels(labelled: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Values of accuracy, Brier score and the preference for length."""
    sided, tied = labelled[labelled["label"] != 0.5], labelled[labelled["label"] == 0.5]
    longer = np.sign(tied["output_2"].str.len() - tied["output_1"].str.len())
    liked = pd.Series(np.where(longer > 0, tied["preference"], 1 - tied["preference"]), tied.index)
    return {
        "accuracy": sided.assign(value=_right(sided)),
        "brier": sided.assign(value=(sided["preference"] - (sided["label"] > 0.5)) ** 2),
        "longer_at_equal_quality": tied.assign(value=liked)[longer != 0],
    }


def _by_order(given: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """A row per pair that was shown in both orders: the probability of the first place, and same verdict or not."""
    means = given.groupby(PAIR, sort=False)["preference"].mean().reset_index()
    forward = means[means["output_1"] < means["output_2"]]
    both = forward.merge(
        means.rename(columns={"output_1": "output_2", "output_2": "output_1", "preference": "back"}), on=PAIR
    )
    first = (1 - both["preference"] + 1 - both["back"]) / 2
    same = verdicts(both["preference"].to_numpy()) == verdicts(1 - both["back"].to_numpy())
    return {"first_slot": both.assign(value=first), "order_consistency": both.assign(value=same)}


def _asked_again(given: pd.DataFrame) -> pd.DataFrame:
    """A row per pair and order that was asked at least twice: whether all verdicts are the same."""
    said = given.assign(said=verdicts(given["preference"].to_numpy()))
    found = said.groupby(PAIR, sort=False)["said"].agg(["size", "nunique"]).reset_index()
    return found[found["size"] > 1].assign(value=lambda table: table["nunique"] == 1)


def triples(given: pd.DataFrame) -> pd.DataFrame:
    """`instruction, value`: a row per three answers judged each against each; value: they beat one another in a circle.

    A pair's verdict is that of its mean probability over orders and repetitions; triples with a tie are left out.
    """
    swap = given["output_1"] > given["output_2"]
    first, second = (
        given["output_1"].where(~swap, given["output_2"]),
        given["output_2"].where(~swap, given["output_1"]),
    )
    sides = given["preference"].where(~swap, 1 - given["preference"])
    table = pd.DataFrame({"instruction": given["instruction"], "a": first, "b": second, "mean": sides})
    rows = []
    for instruction, pairs in table.groupby("instruction", sort=False):
        means = pairs.groupby(["a", "b"], as_index=False)["mean"].mean().itertuples(index=False)
        beats = {(a, b): np.sign(mean - 0.5) for a, b, mean in means if mean != 0.5}
        for a, b, c in itertools.combinations(sorted({text for pair in beats for text in pair}), 3):
            if {(a, b), (b, c), (a, c)} <= set(beats):
                circle = beats[a, b] == beats[b, c] == -beats[a, c]
                rows.append({"instruction": instruction, "value": bool(circle)})
    return pd.DataFrame(rows, columns=["instruction", "value"])


def _estimate(table: pd.DataFrame, values_NF: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> Estimate:
    """A statistic of sums over rows, (…, F + 1) with the number of rows last, and its interval over instructions."""
    if table.empty:
        return {"value": math.nan, "low": math.nan, "high": math.nan, "n": 0}
    place_N, instructions = pd.factorize(table["instruction"])
    sums_IF = np.zeros((len(instructions), values_NF.shape[1] + 1))
    np.add.at(sums_IF, place_N, np.column_stack([values_NF, np.ones(len(table))]))
    count = len(instructions)
    drawn_DI = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=DRAWS)
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = np.nanquantile(statistic(drawn_DI @ sums_IF), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        value = float(statistic(sums_IF.sum(0)))
    return {"value": value, "low": float(low), "high": float(high), "n": len(table)}


def _mean(sums_F: np.ndarray) -> np.ndarray:
    return np.asarray(sums_F[..., 0] / sums_F[..., -1])


def _confusions(labelled: pd.DataFrame) -> np.ndarray:
    """(N, 9): which of loss, tie and win the judge says, by which of them is true."""
    said, true = (verdicts(labelled[name].to_numpy()).astype(int) + 1 for name in ("preference", "label"))
    return np.eye(9)[3 * said + true]


def _kappa(sums_F: np.ndarray) -> np.ndarray:
    """Cohen's κ of summed confusions, NaN where chance alone agrees always."""
    table = (sums_F[..., :9] / sums_F[..., -1:]).reshape(*sums_F.shape[:-1], 3, 3)
    chance = (table.sum(-1) * table.sum(-2)).sum(-1)
    return np.asarray((np.trace(table, axis1=-2, axis2=-1) - chance) / (1 - chance))


def _calibration(sided: pd.DataFrame) -> np.ndarray:
    """(N, BINS): confidence minus right or wrong (a tie: half), in the column of the confidence's bin."""
    confidence = np.abs(sided["preference"].to_numpy() - 0.5) + 0.5
    right = _right(sided)
    bins = np.minimum((2 * (confidence - 0.5) * BINS).astype(int), BINS - 1)
    return np.eye(BINS)[bins] * (confidence - right)[:, None]


def _calibration_error(sums_F: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(sums_F[..., :BINS]).sum(-1) / sums_F[..., -1])


def _right(sided: pd.DataFrame) -> np.ndarray:
    """1 where judge and label are of the same side, 0.5 where the judge says tie, else 0."""
    said, true = (verdicts(sided[name].to_numpy()) for name in ("preference", "label"))
    return np.where(said == 0, 0.5, said == true)

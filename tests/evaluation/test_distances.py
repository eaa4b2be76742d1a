"""Claims about the distance to the target, by their rules."""

import pandas as pd
import pytest
from po_dynamics.evaluation.distances import CLAIMS, judge

GOOD = {
    "fall": 2.0,
    "fall_low": 1.0,
    "fall_high": 3.0,
    "remaining": 0.03,
    "remaining_low": 0.01,
    "remaining_high": 0.06,
}


def ends(**last):
    """A training of dpo that keeps the rules, and one of rda with `last`; an earlier checkpoint and another τ fail."""
    bad = {"fall": -1, "fall_low": -2, "fall_high": -0.5, "remaining": 2, "remaining_low": 1.5, "remaining_high": 3}
    rows = [{"run": run, "step": 5, **GOOD, "own_tau": True} for run in ("dpo", "rda")]
    rows[1] |= last
    rows += [{"run": "dpo", "step": 2, **bad, "own_tau": True}, {"run": "rda", "step": 5, **bad, "own_tau": False}]
    rows.append({"run": "sft", "step": 0, **bad, "own_tau": False})
    return pd.DataFrame(rows).assign(model="m", seed=0).fillna({"n_low_ess": 0} if "n_low_ess" in last else {})


@pytest.mark.parametrize(
    ("last", "verdicts"),
    [
        ({}, ["holds", "holds"]),
        ({"fall_low": -0.1}, ["open", "holds"]),
        ({"fall_low": -0.1, "fall_high": 0.0}, ["does not hold", "holds"]),
        ({"remaining_high": 0.1}, ["holds", "open"]),
        ({"remaining_low": 0.1, "remaining_high": 0.2}, ["holds", "does not hold"]),
        ({"n_low_ess": 1}, ["holds", "open"]),
        ({"n_low_ess": 1, "remaining_low": 0.1, "remaining_high": 0.2}, ["holds", "does not hold"]),
    ],
)
def test_verdicts_follow_from_the_worst_training_at_its_own_temperature(last, verdicts):
    table = ends(**({"n_low_ess": 0} | last))
    found = judge(table)
    assert list(found) == CLAIMS
    assert found["verdict"].tolist() == verdicts
    assert found["low"].tolist() == [last.get("fall_low", 1.0), last.get("remaining_low", 0.01)]
    assert "dpo and rda end nearer" in found["claim"][0]

"""Agreement of judges, against scikit-learn's κ and ranks that are known."""

import numpy as np
import pandas as pd
import pytest
from po_dynamics.errors import InputError
from po_dynamics.evaluation.reliability import agreement
from sklearn.metrics import cohen_kappa_score


def test_kappa_is_scikit_learns():
    random = np.random.default_rng(0)
    ours = random.choice([0.0, 0.5, 1.0], 500, p=[0.2, 0.1, 0.7])
    theirs = np.where(random.random(500) < 0.6, ours, random.choice([0.0, 0.5, 1.0], 500))
    found = agreement.agreement(ours, theirs)
    assert found.raw == (ours == theirs).mean()
    assert found.kappa == pytest.approx(cohen_kappa_score(2 * ours, 2 * theirs))


def test_probabilities_are_verdicts_and_gaps_do_not_count():
    found = agreement.agreement(np.array([0.6, 0.2, np.nan, 0.9]), np.array([0.99, 0.7, 1.0, np.nan]))
    assert found[:2] == (2, 0.5)
    assert np.isnan(agreement.agreement(np.ones(5), np.ones(5)).kappa)  # both always say yes
    assert agreement.agreement(np.array([1.0, 0.0]), np.array([0.0, 1.0])).kappa == -1


def evaluation(rates, n=400, seed=0):
    random, tables = np.random.default_rng(seed), []
    for run, rate in rates.items():
        for step, level in ((0, 0.5), (20, rate)):
            table = pd.DataFrame(
                {"id": range(n), "outcome": random.permutation(np.arange(n) < n * level).astype(float)}
            )
            tables.append(table.assign(model="m", run=run, seed=0, step=step))
    return pd.concat(tables)


def test_ranks_of_runs_at_their_last_checkpoints():
    ours = evaluation({"a": 0.4, "b": 0.5, "c": 0.6, "d": 0.7})
    same = agreement.judges_agree(ours, evaluation({"a": 0.6, "b": 0.61, "c": 0.7, "d": 0.95}, seed=1)).iloc[0]
    assert (same["spearman"], same["kendall"], same["n_runs"], same["n"]) == (
        pytest.approx(1),
        pytest.approx(1),
        4,
        3200,
    )
    assert abs(same["kappa"]) < 0.1  # drawn apart: the runs rank alike, the prompts do not agree
    reversed_ = agreement.judges_agree(ours, evaluation({"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6})).iloc[0]
    assert reversed_["spearman"] == pytest.approx(-1)
    two = agreement.judges_agree(ours[ours["run"].isin(["a", "b"])], ours).iloc[0]
    assert np.isnan(two["spearman"])
    assert two[["agreement", "kappa"]].tolist() == [1, 1]
    with pytest.raises(InputError, match="no response in common"):
        agreement.judges_agree(ours, ours.assign(model="other"))

"""The correction by true labels, on studies whose truth is known."""

import numpy as np
import pytest
from po_dynamics.errors import InputError
from po_dynamics.evaluation import stats
from po_dynamics.evaluation.reliability.correction import corrected

GOLD = 0.7


def study(random, n=805, labels=150, right=0.8):
    """(judged, true where known, gold) of one evaluation by a judge that is right in this share of cases."""
    gold = (random.random(n) < GOLD).astype(float)
    judged = np.where(random.random(n) < right, gold, 1 - gold)
    known = np.full(n, np.nan)
    chosen = random.choice(n, labels, replace=False)
    known[chosen] = gold[chosen]
    return judged, known, gold


@pytest.mark.parametrize("right", [0.8, 0.55, 1.0])
def test_the_corrected_interval_covers_the_gold_rate(right):
    """200 evaluations; beside it the interval of the judge's own win rate, which is of the judge and not of gold."""
    random, hits, uncorrected, widths, alone = np.random.default_rng(0), 0, 0, [], []
    for _ in range(200):
        judged, known, _ = study(random, right=right)
        found = corrected(judged, known)
        hits += found.low <= GOLD <= found.high
        low, high = stats.interval(judged[:, None], draws=400)[:, 0]
        uncorrected += low <= GOLD <= high
        widths.append(found.high - found.low)
        alone.append(2 * 1.976 * np.nanstd(known, ddof=1) / np.sqrt(150))
    assert hits / 200 >= 0.93
    assert (uncorrected / 200 < 0.5) == (right < 1)
    gain = {0.8: 0.95, 0.55: 1.02, 1.0: 0.55}  # a good judge narrows the interval of the labels, a bad one does no harm
    assert np.mean(widths) / np.mean(alone) < gain[right]


def test_it_also_covers_the_rate_of_these_very_prompts():
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        judged, known, gold = study(random)
        found = corrected(judged, known)
        hits += found.low <= gold.mean() <= found.high
    assert hits / 200 >= 0.93


def test_it_is_the_papers_estimate():
    """λ · mean(f of the others) + mean(y − λ f), with λ of the least variance, computed the long way."""
    judged, known, _ = study(np.random.default_rng(2), labels=60)
    labelled = ~np.isnan(known)
    others, f, y = judged[~labelled], judged[labelled], known[labelled]
    found = corrected(judged, known)

    def variance(weight):
        return weight**2 * f.var(ddof=1) / len(others) + np.var(y - weight * f, ddof=1) / len(y)

    grid = np.linspace(0, 1, 10_001)
    assert found.weight == pytest.approx(min(grid, key=variance), abs=1e-4)
    assert found.rate == pytest.approx(found.weight * others.mean() + (y - found.weight * f).mean())


def test_a_judge_that_knows_nothing_leaves_the_labels_and_a_perfect_one_all_prompts():
    judged, known, gold = study(np.random.default_rng(3), right=1.0)
    perfect = corrected(judged, known)
    assert perfect.rate == pytest.approx(gold.mean(), abs=0.01)
    constant = corrected(np.full(805, 0.5), known)
    assert constant.weight == 0
    assert constant.rate == pytest.approx(np.nanmean(known))
    everywhere = corrected(judged, gold)  # labels of all prompts: the judge is not needed
    assert (everywhere.rate, everywhere.weight, everywhere.n_labels) == (pytest.approx(gold.mean()), 0, 805)


def test_missing_verdicts_and_too_few_labels():
    judged, known, _ = study(np.random.default_rng(4))
    judged[:100] = np.nan
    assert corrected(judged, known) == corrected(judged[100:], known[100:])
    with pytest.raises(InputError, match="29 judged prompts have a true label"):
        corrected(np.ones(50), np.where(np.arange(50) < 29, 1.0, np.nan))

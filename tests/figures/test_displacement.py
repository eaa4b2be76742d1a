"""What the report says about why both fall: the sentences follow the numbers, and say what is not known."""

import pandas as pd
import pytest
import synthetic
from po_dynamics.figures.report.displacement import explained

HELD = {"held_and_did": 200, "held_only": 50, "did_only": 100, "neither": 250, "share_right": 0.75, "base_rate": 0.5}


def said(table=None, check=None):
    tables = synthetic.displacement()
    (found,) = explained(tables[0] if table is None else table, tables[1] if check is None else check, synthetic.RUNS)
    return found["text"]


def checked(**values):
    return synthetic.displacement()[1].head(1).assign(**HELD | values)


def ends(chosen, rejected):
    """Values, low and high at the end of both, in nats per response."""
    table = synthetic.displacement()[0]
    for role, bounds in (("chosen", chosen), ("rejected", rejected)):
        at = table["quantity"].eq(f"{role}_per_response") & table["step"].eq(250)
        table.loc[at, ["value", "low", "high"]] = bounds
    return table


@pytest.mark.parametrize(
    ("chosen", "rejected", "verdict"),
    [
        ((-2, -3, -1), (-4, -5, -3), "So both fall."),
        ((2, 1, 3), (-4, -5, -3), "So the chosen rose and the rejected fell: not both fall."),
        ((-1, -3, 1), (-4, -5, -3), "Whether the chosen fall is not known."),
        ((-1, -3, 1), (-1, -2, 1), "Whether the chosen and the rejected fall is not known."),
    ],
)
def test_who_fell_is_said_as_far_as_it_is_known(chosen, rejected, verdict):
    text = said(ends(chosen, rejected))
    assert verdict in text
    assert text.count("sign not known") == ("not known." in verdict) * (1 + (rejected[2] > 0))


def test_a_fall_in_one_seed_only_is_not_known():
    table = synthetic.displacement()[0]
    at = table["quantity"].eq("chosen_per_response") & table["seed"].eq(1)
    table.loc[at, "high"] = 0.5
    assert "Whether the chosen fall is not known." in said(table)


def test_a_condition_that_never_holds_cannot_be_the_cause():
    text = said()
    assert "lower its own chosen responses in 0 % of the 60 mini-batches of a checkpoint" in text
    assert "The condition for the chosen never held, and by the next checkpoint they fell in 81 % of 600 cases." in text
    assert (
        "The condition for the rejected never held, and by the next checkpoint they rose in 0 % of 600 cases." in text
    )
    assert "steps on other pairs, AdamW's scaling or what first order leaves out must have." in text
    assert "steps on other pairs" not in said(check=checked(gain=0.25, gain_low=0.1, gain_high=0.4))


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 0.4, "It predicts better than that (+10.0 to +40.0 points)."),
        (-0.4, -0.1, "It predicts worse than that (−40.0 to −10.0 points)."),
        (-0.1, 0.4, "Whether it predicts better than that is not known (−10.0 to +40.0 points)."),
        (0.0, 0.4, "Whether it predicts better than that is not known (+0.0 to +40.0 points)."),
    ],
)
def test_the_condition_is_compared_with_the_base_rate(low, high, verdict):
    text = said(check=checked(gain=0.25, gain_low=low, gain_high=high))
    assert "says rightly in 75 % of 600 cases whether they fell by the next checkpoint" in text
    assert "always saying “did not fall” is right in 50 %." in text
    assert verdict in text


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.51, 0.7, "the ratio says something about which fell."),
        (0.3, 0.49, "the ratio points the wrong way."),
        (0.4, 0.6, "whether the ratio says which fell is not known."),
    ],
)
def test_the_ratio_is_compared_with_chance(low, high, verdict):
    assert verdict in said(check=checked(order=(low + high) / 2, order_low=low, order_high=high))


def test_what_was_not_measured_is_said():
    table, check = synthetic.displacement()
    text = said(table[~table["quantity"].eq("raises_rejected")], check.head(0))
    assert "raise its own rejected ones in a share that is not known" in text
    assert "The condition for" not in text


@pytest.mark.parametrize(
    ("seeds", "words"), [((0,), "1 seed, too few"), ((0, 1), "2 seeds, too few"), (range(3), "3 seeds)")]
)
def test_seeds_are_named_and_said_to_be_few(seeds, words):
    assert words in said(synthetic.displacement(seeds=seeds)[0])


def test_each_run_has_its_paragraph_and_its_rows_in_per_cent():
    tables = [pd.concat(pair) for pair in zip(synthetic.displacement(), synthetic.displacement("ipo"), strict=True)]
    found = explained(tables[0], tables[1].assign(order=0.6), synthetic.RUNS)
    assert [(run["label"], len(run["rows"])) for run in found] == [("DPO", 2), ("IPO", 2)]
    assert found[0]["rows"][0]["share_right"] == pytest.approx(19)
    assert found[0]["rows"][0]["order"] == pytest.approx(60)
    assert found[0]["rows"][0]["order_low"] is None

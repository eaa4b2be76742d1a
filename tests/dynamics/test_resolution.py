"""Which signs are known, what the others need, and the command that says so of a pilot."""

import math

import numpy as np
import pandas as pd
import pytest
import synthetic
from po_dynamics.dynamics.__main__ import main
from po_dynamics.dynamics.observables.resolution import resolution
from po_dynamics.figures.captions import signs


def table(*intervals, component="TOT", n=100):
    """Rows of `dynamics.parquet` with these (low, high), symmetric around G, from n samples of each side."""
    rows = [
        {"model": "m", "run": "dpo", "seed": 0, "step": step, "final_set": "heldout", "component": component}
        | {"segment": "all", "filtered": False, "two_way": True, "equal_weights": step == 0, "n_train": n, "n_final": n}
        | {"G": (low + high) / 2, "G_low": low, "G_high": high, "resolved": low > 0 or high < 0}
        | {"samples_needed": math.ceil(n * ((high - low) / (high + low)) ** 2) if high + low else math.inf}
        for step, (low, high) in enumerate(intervals)
    ]
    return pd.DataFrame(rows)


def test_samples_needed_follow_from_the_ends_of_the_interval():
    """Half a width of 1 at G = 2 from 100 samples: 25 would do; if G is 3 or 1, 12 and 100."""
    row = resolution(table((1, 3))).iloc[0]
    assert row[["checkpoints", "known", "needed", "needed_low", "needed_high"]].tolist() == [1, 1, 25, 12, 100]
    unknown = resolution(table((-1, 2))).iloc[0]
    assert (unknown["known"], unknown["needed"], unknown["needed_high"]) == (0, 900, np.inf)
    assert unknown["needed_low"] == math.ceil(900 * 0.25 / 4)


def test_groups_by_weight_do_not_count_where_weights_are_equal():
    assert resolution(table((1, 3), (1, 3), component="TOP"))["checkpoints"].item() == 1
    assert resolution(table((1, 3), (1, 3)))["checkpoints"].item() == 2


def test_intervals_over_one_side_alone_do_not_count():
    assert resolution(table((1, 3)).assign(two_way=False)).empty


def test_the_sentence_says_what_is_not_known():
    text = signs(resolution(table((1, 3), (-1, 2), (-2, 1))))
    assert text == "TOT: known at 1 of 3, half of the checkpoints would need 900 samples a side (at least 57)"
    assert signs(resolution(table((1, 3)))) == "TOT: known at 1 of 1"
    assert signs(resolution(table((0, 0)))) == "TOT: known at 0 of 1, where G is 0 no number of samples tells"


def test_a_pilot_predicts_the_samples_of_a_larger_draw():
    """Four times the samples halve the intervals: what they need stays the same."""
    small, large = resolution(table((1, 3))), resolution(table((1.5, 2.5), n=400))
    assert small["needed"].item() == large["needed"].item() == 25


def test_known_signs_are_those_that_figures_fill():
    found = resolution(synthetic.dynamics("ppo")).set_index("component")
    rows = synthetic.dynamics("ppo").groupby("component")["resolved"].sum()
    assert found["known"].to_dict() == rows.to_dict()


def test_the_command_names_results_that_hold_no_probe(tmp_path):
    with pytest.raises(SystemExit, match="holds no probe"):
        main([str(tmp_path), "--needed"])

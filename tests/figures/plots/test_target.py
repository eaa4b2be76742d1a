"""The figure of distances to the target."""

from itertools import product

import pandas as pd
import pytest
import synthetic
from PIL import Image
from po_dynamics.errors import InputError
from po_dynamics.figures import style
from po_dynamics.figures.plots.target import draw_target


def table():
    rows = []
    for (run, seed), tau in product((("sft", 0), ("dpo", 0), ("dpo", 1), ("ppo", 0)), (0.1, 1.0)):
        for step in [0] if run == "sft" else [0, 30, 60] if run == "ppo" else [0, 125, 250]:
            kl = (1 + seed) / (1 + step) / tau
            row = {"model": "menagerie", "run": run, "seed": seed, "step": step, "tau": tau, "own_tau": tau == 0.1}
            row |= {"kl_to_target": kl, "low": 0.9 * kl, "high": 1.1 * kl, "log_z": 1 / tau, "log_z_jackknife": 2 / tau}
            rows.append(row | {"ess": 7.0, "n_low_ess": 3, "prompts": 24})
    return pd.DataFrame(rows)


def test_a_panel_per_temperature_with_a_line_per_run(monkeypatch, tmp_path):
    saved = []
    monkeypatch.setattr(style, "save", lambda figure, *rest: saved.append(figure))
    draw_target(table(), tmp_path / "x.png", model="menagerie", runs=synthetic.RUNS)
    assert [ax.get_title("left") for ax in saved[0].axes] == ["(a) τ = 0.1", "(b) τ = 1"]
    for ax, tau in zip(saved[0].axes, (0.1, 1.0), strict=True):
        assert sorted(text.get_text() for text in ax.texts) == ["DPO", "PPO"]
        thick = {tuple(line.get_ydata()) for line in ax.lines if line.get_linewidth() > 1}
        assert all(list(line.get_xdata()) == [0, 50, 100] for line in ax.lines)
        assert any(ys == pytest.approx((1.5 / tau, 1.5 / 126 / tau, 1.5 / 251 / tau)) for ys in thick)  # mean of seeds
        assert len(thick) == 2


def test_the_caption_says_how_far_log_z_can_be_trusted(tmp_path):
    draw_target(table(), tmp_path / "target.png", model="menagerie", runs=synthetic.RUNS)
    with Image.open(tmp_path / "target.png") as image:
        text = image.text["Description"]
    assert "τ = 0.1: 10.00, with the jackknife 20.00, effective samples 7 (median), too few for 3 of 24 prompts" in text
    assert "DPO, PPO 0.1" in text
    with pytest.raises(InputError, match="target: no row with model = other; seen: menagerie"):
        draw_target(table(), tmp_path / "target.png", model="other", runs=synthetic.RUNS)

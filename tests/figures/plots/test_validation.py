"""Figures of G against retraining: every dot where its table says, and captions with the correlations."""

from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from po_dynamics.figures import style
from po_dynamics.figures.plots.checks.validation import draw_components, draw_halves

COMPONENTS = ("POS", "NEG", "TOP", "MID", "BOT")


def tables(adamw=True):
    rng = np.random.default_rng(0)
    rows = []
    for run in ("dpo", "ppo"):
        for seed in range(3):
            for component in COMPONENTS:
                change, win, predicted = rng.normal(size=3)
                row = {"model": "m", "run": run, "seed": seed, "step": 25, "component": component}
                row |= {"change": change, "change_low": change - 0.1, "change_high": change + 0.2}
                row |= {"win_change": win, "win_change_low": win - 1, "win_change_high": win + 1}
                rows.append({**row, "predicted": predicted, "predicted_adamw": 10 * predicted if adamw else np.nan})
    found = [
        {"run": run, "outcome": outcome, "predictor": predictor, "rho": 0.71, "low": 0.5, "high": 0.8}
        for run in ("dpo", "ppo")
        for outcome in ("change", "win_change")
        for predictor in (("predicted", "predicted_adamw") if adamw else ("predicted",))
    ]
    return pd.DataFrame(rows), pd.DataFrame(found)


@pytest.fixture
def kept(monkeypatch):
    """The figure as drawn, instead of files."""
    saved = []
    monkeypatch.setattr(style, "save", lambda figure, *rest: saved.append((figure, *rest)))
    yield saved
    plt.close("all")


@pytest.mark.parametrize("adamw", [True, False])
def test_components_are_drawn_where_the_table_says(kept, tmp_path, adamw):
    effects, agreement = tables(adamw)
    draw_components(effects, agreement, tmp_path / "x.png")
    figure, _, _, caption = kept[0]
    predictor = "predicted_adamw" if adamw else "predicted"
    for ax, (outcome, run) in zip(figure.axes, product(("change", "win_change"), ("dpo", "ppo")), strict=True):
        drawn = np.concatenate([container.lines[0].get_xydata() for container in ax.containers])
        expected = effects[effects["run"] == run][[predictor, outcome]].to_numpy()
        np.testing.assert_allclose(np.sort(drawn, axis=0), np.sort(expected, axis=0))
    assert "dpo, NLL: 0.71 (0.50 to 0.80)" in caption
    assert "30 comparisons on 3 seeds (0, 1, 2)" in caption


def test_halves_are_drawn_a_panel_a_score(kept, tmp_path):
    rng = np.random.default_rng(0)
    halves = pd.DataFrame({"model": "m", "arm": range(40), "nll": rng.normal(size=40), "plain": rng.normal(size=40)})
    halves["last"] = rng.normal(size=40)
    scores = pd.DataFrame(
        {
            "score": ["plain", "last", "lengths"],
            "rho": [0.3, 0.1, 0.2],
            "low": [0.0, -0.2, 0.1],
            "high": [0.5, 0.4, 0.3],
        }
    )
    draw_halves(halves, scores, tmp_path / "x.png")
    figure, _, _, caption = kept[0]
    assert len(figure.axes) == 2
    for ax, name in zip(figure.axes, ("plain", "last"), strict=True):
        np.testing.assert_array_equal(ax.lines[0].get_xydata(), halves[[name, "nll"]].to_numpy())
    assert "40 trainings" in caption
    assert "G, all checkpoints: 0.30 (0.00 to 0.50)" in caption


def test_files_are_written(tmp_path):
    draw_components(*tables(), tmp_path / "components.png")
    with Image.open(tmp_path / "components.png") as image:
        assert image.text["Title"].startswith("G against retraining")
    assert (tmp_path / "components.pdf").stat().st_size > 5_000

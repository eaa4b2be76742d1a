"""The page of the exact bandit."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from po_dynamics.errors import InputError
from po_dynamics.figures import style
from po_dynamics.figures.plots import bandit
from po_dynamics.figures.plots.bandit import Tables, draw_bandit

STEPS = [0, 1, 10, 100, 1000]
CASES = [*bandit._CASES, ("dpo", "uniform"), ("dpo", "missing"), ("rda", "missing"), ("ra", "missing")]


def tables():
    curves = pd.DataFrame(
        {"objective": o, "variant": "posterior", "tau": 0.5, "coverage": c, "step": s, "tv": 0.5 / (1 + s), "kl": 0.1}
        for (o, c), s in product(CASES, STEPS)
    )
    law = pd.DataFrame(
        {"objective": o, "variant": "posterior", "coverage": c, "tau": t, "steps": 90 * t**-2}
        | {"exponent": 2.0, "low": 1.9, "high": 2.2, "factor": 90.0}
        for (o, c), t in product(bandit._CASES, (1.0, 0.5, 0.25))
    )
    samples = pd.DataFrame(
        {"labels": name, "pairs": n, "draw": d, "prompt": p, "tv": 0.1 + 0.01 * d, "kl": 0.2}
        for name, n, d, p in product(bandit._LABELS, (50, 500, 0), (0, 1), (0, 1, 2))
    )
    dpo = {"objective": "dpo", "coverage": "uniform", "final": "greedy"}
    alignment = pd.DataFrame(
        dpo
        | {"training": "exact", "component": k, "step": s, "G": np.cos(s)}
        | {"G_low": np.cos(s) - 0.1, "G_high": np.cos(s) + 0.1, "change": 0.0}
        for k, s in product(("TOT", "POS", "NEG"), STEPS)
    )
    signs = pd.DataFrame(
        dpo | {"training": t, "component": "TOT", "gap": g, "agreement": 0.8, "low": 0.7, "high": 0.9}
        for t, g in product(bandit._TRAININGS, (1, 10, 100))
    )
    return Tables(curves, law, samples, alignment, signs)


def test_page_is_written_twice_alike_with_its_caption(tmp_path):
    for folder in ("one", "two"):
        draw_bandit(tmp_path / folder / "bandit.png", tau=0.5, **tables()._asdict())
    for name in ("bandit.png", "bandit.pdf"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    with Image.open(tmp_path / "one" / "bandit.png") as image:
        text = image.text["Description"]
    assert "3 prompts" in text
    assert "2 data sets of each size" in text
    assert "RDA 2.00 (1.90 to 2.20)" in text
    assert "whose full text was not available" in text


def test_panels_show_every_case(monkeypatch, tmp_path):
    saved = []
    monkeypatch.setattr(style, "save", lambda figure, *rest: saved.append(figure))
    draw_bandit(tmp_path / "x.png", tau=0.5, **tables()._asdict())
    one_target, law, support, samples, alignment, signs = saved[0].axes
    labels = [text.get_text() for text in one_target.texts]
    assert sorted(labels) == sorted(text for text, _ in bandit._CASES.values())
    assert all("p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}2.0" in text.get_text() for text in law.texts)
    assert [len(ax.texts) for ax in (law, support, samples, alignment, signs)] == [6, 4, 3, 3, 2]
    assert law.xaxis_inverted()


def test_a_case_that_is_not_in_the_tables_is_named(tmp_path):
    given = tables()
    without = given._replace(bandit=given.bandit[given.bandit["objective"] != "rda"])
    with pytest.raises(InputError, match=r"bandit: no row with objective = rda; seen: bda, ppo"):
        draw_bandit(tmp_path / "x.png", tau=0.5, **without._asdict())

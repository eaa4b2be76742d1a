"""The exact bandit on one page: targets, speed, data, and what the sign of G is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullFormatter

from po_dynamics.figures import captions, lines, style
from po_dynamics.figures.lines import COMPONENTS, End, Line
from po_dynamics.figures.rows import select

_CASES = {  # (objective, coverage): what it is called
    ("bda", "policy"): ("BDA, KL", Line("#E69F00", (0, (3, 1, 1, 1, 1, 1)), "X")),
    ("ppo", "policy"): ("PPO", Line("#999999", (0, (1, 1.2)), "v")),
    ("ra", "uniform"): ("RA", Line("#56B4E9", (0, (8, 2)), "P")),
    ("rda", "uniform"): ("RDA", Line("#009E73", (0, (5, 1.5, 1, 1.5)), "D")),
    ("pra", "uniform"): ("PRA, DPO", Line("#0072B2", "-", "s")),
    ("pra", "policy"): ("PRA-P", Line("#AA4499", (0, (2, 1)), "v")),
}
_SUPPORT = {
    ("dpo", "uniform"): ("DPO, all in\N{NO-BREAK SPACE}pairs", Line("#0072B2", "-", "s")),
    ("dpo", "missing"): ("DPO", Line("#D55E00", (0, (5, 2)), "^")),
    ("rda", "missing"): ("RDA", Line("#009E73", (0, (5, 1.5, 1, 1.5)), "D")),
    ("ra", "missing"): ("RA", Line("#56B4E9", (0, (8, 2)), "P")),
}
_LABELS = {
    "soft": ("soft: PRA", Line("#0072B2", "-", "s")),
    "drawn": ("hard, drawn: DPO", Line("#D55E00", (0, (5, 2)), "^")),
    "certain": ("hard, certain: DPO", Line("#AA4499", (0, (2, 1)), "v")),
}
_TRAININGS = {
    "exact": ("exact gradient", Line("#0072B2", "-", "s")),
    "mini-batches": ("mini-batches", Line("#D55E00", (0, (5, 2)), "^")),
}
_FLOOR = 1e-6  # of a total variation that is drawn


class Tables(NamedTuple):
    """The tables of `bandit.run` that are drawn."""

    bandit: pd.DataFrame
    bandit_law: pd.DataFrame
    bandit_samples: pd.DataFrame
    bandit_alignment: pd.DataFrame
    bandit_signs: pd.DataFrame


def draw_bandit(output: Path, *, tau: float, **given: pd.DataFrame) -> None:
    """Distance over steps, steps against τ, missing responses, sample size, G over steps, G's sign against the change.

    Args:
        output: the PNG.
        tau: of the panels over steps; posterior objectives.
        given: `Tables`, by name.

    Raises:
        InputError: when a table lacks the rows that are drawn.
    """
    tables = Tables(**given)
    curves = select(tables.bandit, {"tau": tau, "variant": "posterior"}, "bandit")
    panels: tuple[tuple[str, Callable[[Axes], list[End]]], ...] = (
        ("one target", lambda ax: _distance(ax, curves, _CASES)),
        ("slower for smaller τ", lambda ax: _law(ax, tables.bandit_law)),
        ("best responses in no pair", lambda ax: _distance(ax, curves, _SUPPORT)),
        ("finite data", lambda ax: _samples(ax, tables.bandit_samples)),
        ("DPO: G of final responses", lambda ax: _alignment(ax, tables.bandit_alignment)),
        ("DPO: sign of G against the change", lambda ax: _signs(ax, tables.bandit_signs)),
    )
    with style.theme():
        grid = {"wspace": 0.72, "hspace": 0.62}
        figure, axes = plt.subplots(3, 2, figsize=(7.2, 6.4), gridspec_kw=grid)
        for ax, (title, draw), letter in zip(axes.flat, panels, "abcdef", strict=True):
            ax.set_title(f"({letter}) {title}")
            ends = draw(ax)
            sns.despine(ax=ax)
            lines.label_lines(ax, ends, gap=0.105)
        style.save(figure, output, "Exact bandit: four losses, one target", caption(tables, tau))


def _distance(ax: Axes, curves: pd.DataFrame, shown: Mapping[tuple[str, str], tuple[str, Line]]) -> list[End]:
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("steps of gradient descent")
    ax.set_ylabel("total variation to $π^τ_{ref}$")
    ends = []
    for (objective, coverage), (text, line) in shown.items():
        table = select(curves, {"objective": objective, "coverage": coverage}, "bandit")
        table = table[(table["step"] > 0) & (table["tv"] > _FLOOR)]
        ends.append(_plot(ax, text, line, table["step"].to_numpy(), table["tv"].to_numpy()))
    ax.axhline(1e-3, color="#777777", linewidth=0.7, zorder=1)
    return ends


def _law(ax: Axes, law: pd.DataFrame) -> list[End]:
    """Steps until the target is reached, dots, and factor · τ^−p, lines; labelled at the smallest τ."""
    ax.set_xscale("log")
    ax.set_yscale("log")
    ends = []
    for (objective, coverage), (text, line) in _CASES.items():
        wanted = {"objective": objective, "variant": "posterior", "coverage": coverage}
        table = select(law, wanted, "bandit_law").sort_values("tau", ascending=False)
        taus, steps = table["tau"].to_numpy(), table["steps"].to_numpy()
        exponent, factor = table["exponent"].iloc[0], table["factor"].iloc[0]
        ax.plot(taus, factor * taus**-exponent, color=line.colour, linestyle=line.dashes, linewidth=1.4)
        ax.plot(taus, steps, color=line.colour, marker=line.marker, linestyle="", markersize=4)
        name = text.removesuffix(", KL").removesuffix(", DPO")
        ends.append(End(f"{name}, p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{exponent:.1f}", line, taus[-1], steps[-1]))
    ax.invert_xaxis()
    ax.xaxis.set_major_locator(FixedLocator(taus.tolist()))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("temperature τ (falling)")
    ax.set_ylabel("steps to within 10⁻³")
    return ends


def _samples(ax: Axes, samples: pd.DataFrame) -> list[End]:
    """Mean total variation, and as a band the middle 80 % of data sets and prompts."""
    ax.set_xscale("log")
    ax.xaxis.set_minor_formatter(NullFormatter())  # sizes within a decade would be labelled one over another
    ends = []
    for labels, (text, line) in _LABELS.items():
        table = samples[(samples["labels"] == labels) & (samples["pairs"] > 0)].groupby("pairs")["tv"]
        mean, low, high = table.mean(), table.quantile(0.1), table.quantile(0.9)
        pairs = mean.index.to_numpy(dtype=float)
        ax.fill_between(pairs, low, high, color=line.colour, alpha=0.16, linewidth=0)
        ends.append(_plot(ax, text, line, pairs, mean.to_numpy()))
    ax.set_xlabel("pairs per prompt")
    ax.set_ylabel("total variation to $π^τ_{ref}$")
    return ends


def _alignment(ax: Axes, alignment: pd.DataFrame) -> list[End]:
    table = select(alignment, {"objective": "dpo", "coverage": "uniform", "training": "exact"}, "bandit_alignment")
    table = table[(table["final"] == "greedy") & (table["step"] > 0)]
    ax.set_xscale("log")
    lines.level(ax, 0)
    ends = []
    for component in ("TOT", "POS", "NEG"):
        part, line = table[table["component"] == component].sort_values("step"), COMPONENTS[component]
        ax.fill_between(part["step"], part["G_low"], part["G_high"], color=line.colour, alpha=0.16, linewidth=0)
        ends.append(_plot(ax, component, line, part["step"].to_numpy(), part["G"].to_numpy()))
    ax.set_xlabel("steps of gradient descent")
    ax.set_ylabel("gradient alignment G")
    return ends


def _signs(ax: Axes, signs: pd.DataFrame) -> list[End]:
    """Share of (prompt, step) where the sign of G is that of the change over the next steps, with intervals."""
    wanted = {"objective": "dpo", "coverage": "uniform", "component": "TOT", "final": "greedy"}
    table = select(signs, wanted, "bandit_signs")
    ax.set_xscale("log")
    lines.level(ax, 50)
    ends = []
    for training, (text, line) in _TRAININGS.items():
        part = table[table["training"] == training].sort_values("gap")
        gaps, low, high = part["gap"].to_numpy(dtype=float), 100 * part["low"], 100 * part["high"]
        ax.vlines(gaps, low, high, color=line.colour, linewidth=1.2)
        ends.append(_plot(ax, text, line, gaps, 100 * part["agreement"].to_numpy()))
    ax.set_ylim(40, 104)
    ax.set_xlabel("over the next steps")
    ax.set_ylabel("agreement (%)")
    return ends


def _plot(ax: Axes, text: str, line: Line, x: np.ndarray, y: np.ndarray) -> End:
    every = max(1, len(x) // 6)
    ax.plot(
        x,
        y,
        color=line.colour,
        linestyle=line.dashes,
        linewidth=1.5,
        marker=line.marker,
        markevery=(every // 2, every),
        markersize=3.6,
        markeredgecolor="white",
        markeredgewidth=0.4,
    )
    return End(text, line, float(x[-1]), float(y[-1]))


def caption(tables: Tables, tau: float) -> str:
    """What is shown, of how much, and what would contradict it."""
    samples = tables.bandit_samples
    prompts, draws = samples["prompt"].nunique(), samples[samples["pairs"] > 0]["draw"].nunique()
    shown = f"""Tabular softmax policies, {captions.plural(prompts, "prompt")}, trained from π_ref by gradient descent
        with exact expectations and with the very coefficients that train language models; posterior objectives,
        τ = {tau:g} where not said; means over prompts. (a) Distance to the Boltzmann target; pairs of responses drawn
        uniformly, but BDA, PPO and PRA-P on the policy's own; grey: 0.001. DPO with drawn labels is PRA in expectation.
        (b) Steps until the distance stays below 0.001, and τ^−p fitted: p = {_exponents(tables.bandit_law)} (95 %
        bootstrap over prompts). (c) The best responses are in no pair, but for the line that falls. (d) Distance after
        training on {captions.plural(draws, "data set")} of each size; bands: the middle 80 % of data sets and prompts;
        hard labels are drawn (Bradley–Terry) or certain (the better response always wins: the longer the training, the
        further), soft ones are P*. (e) G with the greedy response of the final policy, exact, and a 95 % interval over
        prompts; G > 0: a step makes it likelier. (f) How often the sign of G is that of the change over the next steps,
        where the training follows the exact gradient or a few drawn pairs a step; lines: 95 % bootstrap intervals over
        prompts; 50 % is a coin."""
    meaning = """Our reading of arXiv 2502.03095, whose full text was not available: one target, slower for smaller τ,
        DPO biased where data lack support, PRA-P not. It would be contradicted by a line of (a) that levels off above
        0.001, by p ≤ 0, and by a DPO in (c) that comes down without the best responses. Of arXiv 2512.00778: POS leads
        early and NEG late, in (e); POS and NEG that keep their order would contradict it."""
    return captions.paragraphs(shown, meaning)


def _exponents(law: pd.DataFrame) -> str:
    """p of each case that is drawn, with its interval."""
    found = []
    for (objective, coverage), (text, _) in _CASES.items():
        wanted = {"objective": objective, "variant": "posterior", "coverage": coverage}
        exponent, low, high = select(law, wanted, "bandit_law")[["exponent", "low", "high"]].iloc[0]
        found.append(f"{text} {exponent:.2f} ({low:.2f} to {high:.2f})")
    return "; ".join(found)

"""G against retraining: components left out of an interval, and trainings on random halves of the pairs."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from po_dynamics.figures import captions, lines, style
from po_dynamics.figures.rows import select

_OUTCOMES = {
    "change": "what leaving it out did to the\nNLL of the final responses, nats",
    "win_change": "what leaving it out did to\nthe win rate, points",
}
_PREDICTED = {"predicted_adamw": "predicted from AdamW's G, nats", "predicted": "predicted from G, Σ η·G"}
_SCORES = {
    "plain": "G,\nall checkpoints",
    "adamw": "AdamW's G,\nall checkpoints",
    "last": "G,\nlast checkpoint",
    "last_adamw": "AdamW's G,\nlast checkpoint",
}


def draw_components(effects: pd.DataFrame, agreement: pd.DataFrame, output: Path) -> None:
    """What leaving a component out of an interval did, against what its G predicts: a column a run, a row an outcome.

    Args:
        effects, agreement: of `validation.effects`.
        output: the PNG.
    """
    runs = list(dict.fromkeys(zip(effects["model"], effects["run"], strict=True)))
    predictor = "predicted_adamw" if effects["predicted_adamw"].notna().all() else "predicted"
    with style.theme():
        size, grid = (3.0 * len(runs) + 0.9, 4.9), {"wspace": 0.4, "hspace": 0.55}
        figure, axes = plt.subplots(2, len(runs), figsize=size, squeeze=False, gridspec_kw=grid)
        cells = zip(axes.flat, product(_OUTCOMES, runs), "abcdefghijklmnop", strict=False)
        for ax, (outcome, (model, run)), letter in cells:
            table = select(effects, {"model": model, "run": run}, "validation_effects")
            _components(ax, table, predictor, outcome)
            ax.set_title(f"({letter}) {run}, {model}")
        axes[0, 0].set_ylabel(_OUTCOMES["change"])
        axes[1, 0].set_ylabel(_OUTCOMES["win_change"])
        axes[0, -1].legend(handles=_legend(), loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=7)
        title = "G against retraining: one component left out of an interval"
        style.save(figure, output, title, _components_caption(effects, agreement, predictor))


def _components(ax: Axes, table: pd.DataFrame, predictor: str, outcome: str) -> None:
    """A dot per component, interval and seed, with the 95 % interval of what happened."""
    for axis in (ax.axhline, ax.axvline):
        axis(0, color="#777777", linewidth=0.7, zorder=1)
    if outcome == "change" and predictor == "predicted_adamw":
        ax.axline((0, 0), slope=1, color="#777777", linewidth=0.7, linestyle=(0, (4, 2)), zorder=1)
    for component, rows in table.groupby("component"):
        line = lines.COMPONENTS[str(component)]
        reach = [rows[outcome] - rows[f"{outcome}_low"], rows[f"{outcome}_high"] - rows[outcome]]
        look: dict[str, Any] = {"color": line.colour, "marker": line.marker, "linestyle": ""}
        look |= {"markersize": 3.5, "elinewidth": 0.7}
        ax.errorbar(rows[predictor], rows[outcome], yerr=reach, alpha=0.85, zorder=2, **look)
    ax.set_xlabel(_PREDICTED[predictor])
    sns.despine(ax=ax)


def _legend() -> list[Line2D]:
    shown = {name: line for name, line in lines.COMPONENTS.items() if name != "TOT"}
    return [
        Line2D([], [], color=line.colour, marker=line.marker, linestyle="", markersize=4, label=f"without {name}")
        for name, line in shown.items()
    ]


def _components_caption(effects: pd.DataFrame, agreement: pd.DataFrame, predictor: str) -> str:
    names = {"change": "NLL", "win_change": "win rate"}
    found = [
        f"{row['run']}, {names[row['outcome']]}: {row['rho']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        for row in agreement[agreement["predictor"] == predictor].to_dict("records")
    ]
    shown = f"""Intervals between neighbouring checkpoints were trained again from the stored checkpoint, with all
        and without one component; {captions.plural(len(effects), "comparison")} on {captions.seeds(effects["seed"])}.
        Vertical: without the component minus with everything, mean over final responses or prompts with 95 %
        interval. Horizontal: what G of the component, the mean of both ends of the interval, predicts to first order
        for the NLL; the dashed line is equality. Spearman's ρ with 95 % interval over intervals of training (of the win
        rate with minus the prediction): {"; ".join(found)}."""
    meaning = """In the upper row dots near the dashed line say that G of a component is its causal effect; the lower
        row has no such line, for a lower NLL of the final responses need not be a better model."""
    return captions.paragraphs(shown, meaning)


def draw_halves(halves: pd.DataFrame, scores: pd.DataFrame, output: Path) -> None:
    """NLL of the full training's final responses after training on a half, against the sum of the scores in it.

    Args:
        halves, scores: of `validation.datamodels`: a row per half; a row per score with its ρ.
        output: the PNG.
    """
    names = [name for name in _SCORES if name in set(scores["score"])]
    with style.theme():
        size, grid = (1.9 * len(names) + 0.6, 2.2), {"wspace": 0.15}
        figure, axes = plt.subplots(1, len(names), figsize=size, squeeze=False, sharey=True, gridspec_kw=grid)
        for ax, name, letter in zip(axes.flat, names, "abcd", strict=False):
            for marker, (model, of_model) in zip("osD^", halves.groupby("model"), strict=False):
                ax.plot(of_model[name], of_model["nll"], marker, color="#0072B2", markersize=3, alpha=0.8, label=model)
            ax.set_title(f"({letter}) {_SCORES[name]}")
            ax.xaxis.set_major_locator(MaxNLocator(3))
            ax.set_xlabel("predicted change, nats")
            sns.despine(ax=ax)
        axes[0, 0].set_ylabel("NLL of the final\nresponses, nats")
        title = "G against retraining: the linear datamodelling score"
        style.save(figure, output, title, _halves_caption(halves, scores))


def _halves_caption(halves: pd.DataFrame, scores: pd.DataFrame) -> str:
    found = [
        f"{_SCORES[row['score']]}: {row['rho']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        for row in scores[scores["score"].isin(_SCORES)].to_dict("records")
    ]
    shown = f"""{captions.plural(len(halves), "training")} on random halves of the preference pairs. Vertical: mean NLL
        of the final responses of the training on all pairs, at the end of the training on a half. Horizontal: what the
        scores of the pairs of the half, −Σ η·(share of G), add up to, times two because a half's pairs come up twice as
        often. Spearman's ρ, the linear datamodelling score, with 95 % interval over trainings: {"; ".join(found)}."""
    return captions.paragraphs(shown)

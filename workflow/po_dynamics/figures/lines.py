"""Lines over steps: colours that colour-blind readers can tell apart, seeds, intervals, labels where lines end."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from po_dynamics.figures.rows import by_seed


class Line(NamedTuple):
    """Every line differs from its neighbours in colour, dashes and marker, so that grey prints stay readable."""

    colour: str
    dashes: Any
    marker: str


class End(NamedTuple):
    """Where a line ends, in units of the data, and what is written there."""

    text: str
    line: Line
    x: float
    y: float


# Okabe and Ito's palette; its yellow, too light for a line on white, is left out.
COMPONENTS = {
    "TOT": Line("#000000", "-", "o"),
    "POS": Line("#0072B2", "-", "o"),
    "NEG": Line("#D55E00", (0, (5, 2)), "s"),
    "TOP": Line("#AA4499", "-", "^"),
    "MID": Line("#009E73", (0, (5, 2)), "D"),
    "BOT": Line("#999999", (0, (1, 1.2)), "v"),
}
PARENT = Line("#444444", (0, (1, 1.2)), "o")
VARIANTS = (
    Line("#0072B2", "-", "s"),
    Line("#D55E00", (0, (5, 2)), "^"),
    Line("#009E73", (0, (5, 1.5, 1, 1.5)), "D"),
    Line("#AA4499", (0, (2, 1)), "v"),
    Line("#56B4E9", (0, (8, 2)), "P"),
    Line("#E69F00", (0, (3, 1, 1, 1, 1, 1)), "X"),
)
STEPS = {"offline": "optimizer steps", "online": "updates"}


def step_axis(ax: Axes, family: str, title: str, x_label: bool = True) -> None:
    """Title, a few whole steps as ticks, and what a step of the family is."""
    ax.set_title(title)
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 2.5, 5, 10]))
    if x_label:
        ax.set_xlabel(STEPS[family])
    sns.despine(ax=ax)


def level(ax: Axes, y: float) -> None:
    """A thin line across the axes, at the value that says "nothing"."""
    ax.axhline(y, color="#777777", linewidth=0.7, zorder=1)


def diagonal(ax: Axes) -> None:
    """The dashed line on which both axes, of one scale, are equal, within the limits that the data set."""
    limits = ax.get_xlim(), ax.get_ylim()
    ends = [max(low for low, _ in limits), min(high for _, high in limits)]
    ax.plot(ends, ends, color="#777777", linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)
    ax.set(xlim=limits[0], ylim=limits[1])


def draw_table(
    ax: Axes,
    table: pd.DataFrame,
    column: str,
    line: Line,
    band: tuple[str, str] | None = None,
    known: str | None = None,
) -> None:
    """A column over steps: its mean over seeds, each seed, and per seed the interval in the two columns of `band`.

    Points are hollow where the column `known` is not true of every seed, with one sign of the values.
    """
    values = by_seed(table, column)
    if values.empty:
        return
    bands = []
    if band:
        low, high = (by_seed(table, name).reindex(values.index) for name in band)
        bands = [(low[seed].to_numpy(), high[seed].to_numpy()) for seed in values]
    _draw_line(ax, values.index.to_numpy(), [values[seed].to_numpy() for seed in values], line, bands)
    if known:
        sure = by_seed(table, known).reindex(values.index).astype(bool).all(axis=1)
        hollow = ~(sure & ((values > 0).all(axis=1) | (values < 0).all(axis=1)))
        _draw_hollow(ax, values.mean(axis=1)[hollow], line)


def _draw_line(
    ax: Axes,
    x: np.ndarray,
    y_by_seed: Sequence[np.ndarray],
    line: Line,
    bands: Sequence[tuple[np.ndarray, np.ndarray]],
) -> None:
    """The mean over seeds, thick, marked where it has few points; each seed, thin; an interval band per seed."""
    for low, high in bands:
        ax.fill_between(x, low, high, color=line.colour, alpha=0.16 / max(1, len(bands)) + 0.04, linewidth=0)
    if len(y_by_seed) > 1:
        for y in y_by_seed:
            ax.plot(x, y, color=line.colour, linestyle=line.dashes, linewidth=0.6, alpha=0.55)
    marker: dict[str, Any] = {
        "marker": line.marker,
        "markersize": 3.2,
        "markeredgecolor": "white",
        "markeredgewidth": 0.4,
    }
    mean = np.mean(y_by_seed, axis=0)
    ax.plot(x, mean, color=line.colour, linestyle=line.dashes, linewidth=1.6, **(marker if len(x) <= 40 else {}))


def _draw_hollow(ax: Axes, points: pd.Series, line: Line) -> None:
    """White points over those of the mean line."""
    ax.plot(
        points.index,
        points.to_numpy(),
        linestyle="none",
        marker=line.marker,
        markersize=3.4,
        markerfacecolor="white",
        markeredgecolor=line.colour,
        markeredgewidth=0.9,
        zorder=4,
    )


def ends(table: pd.DataFrame, key: str, column: str, lines: Mapping[str, tuple[str, Line]]) -> list[End]:
    """The last point of each mean line; `lines`: text and line by the value in the column `key`."""
    found = []
    for name, (text, line) in lines.items():
        mean = by_seed(table[table[key] == name], column).mean(axis=1)
        if len(mean):
            found.append(End(text, line, float(mean.index[-1]), float(mean.iloc[-1])))
    return found


def label_lines(ax: Axes, ends: Sequence[End], gap: float = 0.075) -> None:
    """Writes the lines' labels right of the axes where they end, moved apart and joined by a thin rule.

    Call it last: it needs the final limits. `gap` is the height of a line of text, in heights of the axes.
    """
    if not ends:
        return
    ax.autoscale_view()  # matplotlib settles the limits late
    to_axes = ax.transData + ax.transAxes.inverted()
    heights = [float(np.clip(to_axes.transform((end.x, end.y))[1], 0, 1)) for end in ends]
    order = np.argsort(heights, kind="stable")
    texts = [textwrap.fill(end.text, 15) for end in ends]
    sizes = [gap * (1 + text.count("\n")) for text in texts]
    placed = without_overlap([heights[i] for i in order], [sizes[i] for i in order])
    for i, height in zip(order, placed, strict=True):
        ax.annotate(
            texts[i],
            xy=(ends[i].x, ends[i].y),
            xytext=(1.06, height),
            textcoords="axes fraction",
            color=ends[i].line.colour,
            fontsize=7.5,
            va="center",
            linespacing=1.05,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": ends[i].line.colour,
                "linewidth": 0.5,
                "shrinkA": 1,
                "shrinkB": 2,
            },
        )


def without_overlap(heights: Sequence[float], sizes: Sequence[float]) -> np.ndarray:
    """Centres, near ascending `heights`, of labels of these sizes that do not overlap (pool adjacent violators)."""
    offsets = np.cumsum(sizes) - np.asarray(sizes) / 2
    blocks: list[tuple[float, int]] = []  # (mean of height − offset, members)
    for height, offset in zip(heights, offsets, strict=True):
        blocks.append((height - offset, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (b, m), (a, n) = blocks.pop(), blocks.pop()
            blocks.append(((a * n + b * m) / (n + m), n + m))
    flat = np.repeat([height for height, _ in blocks], [n for _, n in blocks])
    return flat + offsets

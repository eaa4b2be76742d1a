"""How figures look: colours that colour-blind readers can tell apart, names of runs, direct labels, stable files."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from po_dynamics.errors import InputError
from po_dynamics.storage.atomic import atomic_file

Runs = Mapping[str, Mapping[str, Any]]  # run name → objective, family, parameters


class Line(NamedTuple):
    """Every line differs from its neighbours in colour, dashes and marker, so that grey prints stay readable."""

    colour: str
    dashes: Any
    marker: str


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
TITLES = {
    "base": "base model, no SFT",
    "dpo": "DPO",
    "cdpo": "cDPO",
    "dpo_no_neg": "DPO",
    "dpo_no_pos": "DPO",
    "dpo_switch": "DPO",
    "ipo": "IPO",
    "simpo": "SimPO",
    "cpo": "CPO",
    "kto": "KTO",
    "ppo": "PPO",
    "cppo_top": "cPPO-top",
    "cppo_mid": "cPPO-mid",
    "ppo_no_top": "PPO",
    "ppo_no_mid": "PPO",
    "hppo": "hPPO",
    "ppo_clip_higher": "PPO, clip-higher",
    "grpo": "GRPO",
}
# What a variant does, in the words of its panel; the rest of a run's name comes from its parameters.
# "~" is a space at which a label is not broken.
_DEEDS = {
    "cdpo": "POS~→~NEG, steps~{t1}–{t2}",
    "dpo_no_neg": "no NEG before step~{before}",
    "dpo_no_pos": "no POS after step~{after}",
    "dpo_switch": "POS~→~NEG at step~{at}",
    "cppo_top": "TOP~×~{lambda}",
    "cppo_mid": "MID~×~{lambda}",
    "ppo_no_top": "no~TOP",
    "ppo_no_mid": "no~MID",
    "hppo": "t₃~=~{t3}, τ~=~{tau}",
}
_GREEK = {"beta": "β", "lambda": "λ", "tau": "τ", "epsilon": "ε", "gamma": "γ", "alpha": "α", "t1": "t₁", "t2": "t₂"}


def run_labels(names: Sequence[str], runs: Runs, with_objective: bool = False) -> dict[str, str]:
    """Readable names of runs: what each does, by objective and parameters; told apart by what differs, if need be."""
    plain = {name: _label(name, runs, with_objective) for name in names}
    labels = dict(plain)
    for name, label in plain.items():
        if list(plain.values()).count(label) > 1:
            parameters = runs.get(name, {}).get("parameters", {})
            detail = ", ".join(f"{_GREEK.get(key, key)} = {value}" for key, value in parameters.items())
            labels[name] = f"{label} ({detail or name})"
    unique = len(set(labels.values())) == len(labels)
    return labels if unique else {name: f"{label} ({name})" for name, label in plain.items()}


def _label(name: str, runs: Runs, with_objective: bool) -> str:
    run = runs.get(name, {})
    objective = str(run.get("objective", name))
    title, deed = TITLES.get(objective, objective), _DEEDS.get(objective)
    if deed is None:
        return title
    try:
        text = deed.format(**run.get("parameters", {})).replace("~", "\N{NO-BREAK SPACE}")
    except KeyError:  # a parameter is at its default
        return title
    return f"{title}: {text}" if with_objective else text


def theme() -> Any:
    """Context manager: seaborn's ticks style with sizes for a page 7.2 inches wide."""
    style = {
        "font.family": "DejaVu Sans",
        "axes.linewidth": 0.7,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.grid": True,
        "axes.grid.axis": "y",
        "grid.color": "#e6e6e6",
        "grid.linewidth": 0.6,
        "xtick.major.width": 0.7,
        "ytick.major.width": 0.7,
        "pdf.fonttype": 42,
    }
    sizes = {"font.size": 8, "axes.titlesize": 8.5, "axes.labelsize": 8, "xtick.labelsize": 7.5, "ytick.labelsize": 7.5}
    settings: dict[Any, Any] = {**sns.axes_style("ticks"), **style, **sizes}
    return plt.rc_context(settings)


def draw_line(
    ax: Axes,
    x: np.ndarray,
    y_by_seed: Sequence[np.ndarray],
    line: Line,
    bands: Sequence[tuple[np.ndarray, np.ndarray]] = (),
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


def select(table: pd.DataFrame, wanted: Mapping[str, Any], name: str) -> pd.DataFrame:
    chosen = table
    for column, value in wanted.items():
        if column not in table:
            raise InputError(f"{name}: no column {column}; seen: {', '.join(map(str, table.columns))}")
        seen = chosen[column].unique().tolist()
        chosen = chosen[chosen[column] == value]
        if chosen.empty:
            raise InputError(f"{name}: no row with {column} = {value}; seen: {', '.join(map(str, seen)) or 'no rows'}")
    return chosen.sort_values([column for column in ("seed", "step") if column in chosen])


def by_seed(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Steps (rows) × seeds, of the steps that every seed has."""
    return table.pivot(index="step", columns="seed", values=column).dropna().sort_index()


def draw_table(ax: Axes, table: pd.DataFrame, column: str, line: Line, band: tuple[str, str] | None = None) -> None:
    values = by_seed(table, column)
    bands = []
    if band:
        low, high = (by_seed(table, name).reindex(values.index) for name in band)
        bands = [(low[seed].to_numpy(), high[seed].to_numpy()) for seed in values]
    draw_line(ax, values.index.to_numpy(), [values[seed].to_numpy() for seed in values], line, bands)


def ends(table: pd.DataFrame, key: str, column: str, lines: Mapping[str, tuple[str, Line]]) -> list[tuple]:
    """(text, line, x, y) of the last point of each mean line."""
    ends = []
    for name, (text, line) in lines.items():
        mean = by_seed(table[table[key] == name], column).mean(axis=1)
        if len(mean):
            ends.append((text, line, float(mean.index[-1]), float(mean.iloc[-1])))
    return ends


def step_axis(ax: Axes, family: str, title: str, x_label: bool = True) -> None:
    ax.set_title(title)
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 2.5, 5, 10]))
    if x_label:
        ax.set_xlabel(STEPS[family])
    sns.despine(ax=ax)


def label_lines(ax: Axes, ends: Sequence[tuple[str, Line, float, float]], gap: float = 0.075) -> None:
    """Writes (text, line, x, y) labels right of the axes at the lines' ends, moved apart and joined by a thin rule.

    Call it last: it needs the final limits. `gap` is the height of a line of text, in heights of the axes.
    """
    if not ends:
        return
    ax.autoscale_view()  # matplotlib settles the limits late
    to_axes = ax.transData + ax.transAxes.inverted()
    heights = [float(np.clip(to_axes.transform((x, y))[1], 0, 1)) for _, _, x, y in ends]
    order = np.argsort(heights, kind="stable")
    texts = [textwrap.fill(text, 15) for text, *_ in ends]
    placed = _spread([heights[i] for i in order], [gap * (1 + texts[i].count("\n")) for i in order])
    for i, height in zip(order, placed, strict=True):
        text, (_, line, x, y) = texts[i], ends[i]
        ax.annotate(
            text,
            xy=(x, y),
            xytext=(1.06, height),
            textcoords="axes fraction",
            color=line.colour,
            fontsize=7.5,
            va="center",
            linespacing=1.05,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": line.colour, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 2},
        )


def _spread(heights: Sequence[float], sizes: Sequence[float]) -> np.ndarray:
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


def save(figure: Figure, output: Path, title: str, caption: str) -> None:
    """Writes `output` (PNG, 200 dpi) and a PDF beside it, identical for identical input.

    The PNG carries its title and caption as text metadata, `Title` and `Description`: the report reads them there.
    """
    pdf = {"Title": title, "Subject": caption, "CreationDate": None, "ModDate": None}
    png = {"Title": title, "Description": caption, "Software": None}
    for path, metadata in ((output.with_suffix(".pdf"), pdf), (output, png)):
        kind = path.suffix[1:]
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format=kind, metadata=metadata, bbox_inches="tight", pad_inches=0.04, dpi=200)
    plt.close(figure)

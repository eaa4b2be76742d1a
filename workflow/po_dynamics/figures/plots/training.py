"""Training curves: the quantities of `training.csv`, those that belong together in one panel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from po_dynamics.errors import InputError
from po_dynamics.figures import captions, style
from po_dynamics.figures.labels import run_labels
from po_dynamics.figures.lines import COMPONENTS, Line, step_axis
from po_dynamics.objectives.families import Runs

_CHOSEN, _REJECTED = COMPONENTS["POS"], COMPONENTS["NEG"]
_ONE = COMPONENTS["POS"]
# Title and the columns of a panel with their names in its legend; a column that is not here gets a panel of its own.
_PANELS: tuple[tuple[str, dict[str, tuple[str, Line]]], ...] = (
    ("loss", {"loss": ("", _ONE)}),
    ("implicit reward", {"rewards_chosen": ("chosen", _CHOSEN), "rewards_rejected": ("rejected", _REJECTED)}),
    ("reward margin", {"rewards_margins": ("", _ONE)}),
    ("ranking accuracy", {"rewards_accuracies": ("", _ONE)}),
    ("log-prob, nats", {"logps_chosen": ("chosen", _CHOSEN), "logps_rejected": ("rejected", _REJECTED)}),
    ("mean weight ω", {"weight": ("", _ONE)}),
    ("coefficient c", {"coefficient_chosen": ("chosen", _CHOSEN), "coefficient_rejected": ("rejected", _REJECTED)}),
    ("reward", {"reward": ("", _ONE)}),
    ("KL, nats/response", {"kl_per_response": ("k1", _ONE), "kl_k3_per_response": ("k3", _REJECTED)}),
    ("entropy, nats/token", {"entropy": ("", _ONE)}),
    ("length, tokens", {"response_length": ("", _ONE)}),
    ("share ended (EOS)", {"eos_rate": ("", _ONE)}),
    ("GAE, not whitened", {f"raw_advantage_{name}": (name, COMPONENTS[name]) for name in ("TOP", "MID", "BOT")}),
    ("policy loss", {"policy_loss": ("", _ONE)}),
    ("value loss", {"value_loss": ("", _ONE)}),
    ("explained variance", {"explained_variance": ("", _ONE)}),
    ("share clipped", {"clip_fraction": ("policy", _ONE), "value_clip_fraction": ("critic", _REJECTED)}),
    ("gradient norm", {"grad_norm": ("", _ONE)}),
    ("grad norm, policy", {"policy_grad_norm": ("", _ONE)}),
    ("grad norm, critic", {"critic_grad_norm": ("", _ONE)}),
    ("KL coefficient", {"kl_coefficient": ("", _ONE)}),
    ("learning rate", {"learning_rate": ("", _ONE)}),
)
# Said by another column, about the machine, or of use only when something went wrong: in the table, not in the figure.
_LEFT_OUT = {
    *("step", "epoch", "episodes_per_second", "pairs_per_second", "sampling_mismatch", "logratios_chosen"),
    *("logratios_rejected", "reward_std", "kl_per_token", "kl_k3_per_token", "ratio", "ratio_first", "step_kl"),
    *("ratio_first_deviation", "fraction_POS", "fraction_NEG", "fraction_TOP", "fraction_MID"),
    "fraction_BOT",
}


def draw_training(training: Mapping[int, pd.DataFrame], output: Path, *, model: str, run: str, runs: Runs) -> None:
    """Training curves of one run: loss, rewards, KL, norms and so on, whatever was logged and varies.

    Args:
        training: `training.csv` by seed, first column `step`.
        output: the PNG.

    Raises:
        InputError: when nothing that could be drawn was logged.
    """
    panels = _panels(list(training.values()))
    if not panels:
        raise InputError(f"training.csv of {run}: no quantity that varies over steps; is the log complete?")
    label, family = run_labels([run], runs, with_objective=True)[run], runs[run]["family"]
    steps = int(max(table["step"].max() for table in training.values()))
    window = max(1, max(len(table) for table in training.values()) // 25)
    rows = -(-len(panels) // 4)
    with style.theme():
        size, grid = (7.2, 1.45 * rows), {"wspace": 0.42, "hspace": 0.7}
        figure, axes = plt.subplots(rows, 4, figsize=size, squeeze=False, gridspec_kw=grid)
        for i, (ax, (title, lines)) in enumerate(zip(axes.flat, panels, strict=False)):
            for column, (name, line) in lines.items():
                _draw(ax, training, column, name, line, window)
            step_axis(ax, family, title, x_label=i + 4 >= len(panels))
            ax.set_title(title, fontsize=7.5)
            if len(lines) > 1:
                ax.legend(frameon=False, fontsize=6.5, handlelength=1.6, borderpad=0, labelspacing=0.25)
        for ax in axes.flat[len(panels) :]:
            ax.remove()
        caption = _caption(label, model, list(training), steps, window)
        style.save(figure, output, f"Training of {label}", caption)


def _panels(tables: list[pd.DataFrame]) -> list[tuple[str, dict[str, tuple[str, Line]]]]:
    """The panels with the columns that the tables have and that vary, then those that we do not know."""
    known = {column for _, lines in _PANELS for column in lines}
    others = [str(name) for name in tables[0].columns if name not in known | _LEFT_OUT]
    own: list[tuple[str, dict[str, tuple[str, Line]]]] = [
        (name.replace("_", " "), {name: ("", _ONE)}) for name in others
    ]
    kept = []
    for title, lines in (*_PANELS, *own):
        drawn = {column: line for column, line in lines.items() if _varies(column, tables)}
        kept += [(title, drawn)] if drawn else []
    return kept


def _varies(name: str, tables: Iterable[pd.DataFrame]) -> bool:
    """Whether the column is one of numbers and not a constant; a single row says nothing and is kept."""
    columns = [table[name].dropna() for table in tables if name in table]
    values = pd.concat(columns) if columns else pd.Series(dtype=float)
    numbers = pd.api.types.is_numeric_dtype(values)
    return numbers and len(values) > 0 and (values.nunique() > 1 or max(map(len, columns)) == 1)


def _draw(ax: Axes, curves: Mapping[int, pd.DataFrame], column: str, name: str, line: Line, window: int) -> None:
    tables = [table[["step", column]].dropna().assign(seed=seed) for seed, table in curves.items() if column in table]
    values = pd.concat(tables).pivot(index="step", columns="seed", values=column)
    smooth = values.mean(axis=1).rolling(window, center=True, min_periods=1).mean()
    look: dict[str, Any] = {"color": line.colour, "marker": line.marker if len(values) == 1 else ""}
    ax.plot(values.index, values, linewidth=0.5, alpha=0.4, **look)
    ax.plot(smooth.index, smooth, linewidth=1.5, linestyle=line.dashes, label=name, **look)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}".replace("-", "\N{MINUS SIGN}"))


def _caption(label: str, model: str, of_seeds: Iterable[int], steps: int, window: int) -> str:
    """`window` is the number of logged steps that the mean is smoothed over."""
    return captions.paragraphs(
        f"""Training curves of {label} on {model}, {captions.seeds(of_seeds)}, over {captions.plural(steps, "step")}:
        thin lines as logged, one per seed; thick lines their mean, smoothed over
        {captions.plural(window, "logged step")}."""
    )

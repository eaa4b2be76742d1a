"""Figure 4."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from po_dynamics.errors import InputError
from po_dynamics.figures import captions, style
from po_dynamics.figures.alignment import _draw_win_rates, _limits, _win_rate_panels


def draw_win_rates(win_rates: pd.DataFrame, output: Path, *, model: str, runs: style.Runs) -> None:
    """Figure 4: win rate over the SFT model against the steps; a panel per kind of variant, its parent in each.

    Args:
        win_rates: `win_rates.csv`. Runs that `runs` does not know (the base model) are left out.
    """
    table = style.select(win_rates, {"model": model}, "win rates")
    table = table[table["run"].isin(list(runs))]
    panels = _win_rate_panels([name for name in runs if name in set(table["run"])], runs)
    if not panels:
        raise InputError(
            f"win rates: no run of {model} was judged; seen: {', '.join(map(str, win_rates['run'].unique()))}"
        )
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    with style.theme():
        size, grid = (3.6 * columns, 1.9 * rows), {"wspace": 0.66, "hspace": 0.62}
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, gridspec_kw=grid)
        limits = {family: _limits(table, family, runs) for family in ("offline", "online")}
        for ax, (title, names), letter in zip(axes.flat, panels, "abcdefghijklmnopqrstuvwxyz", strict=False):
            _draw_win_rates(ax, table, names, runs, limits)
            ax.set_title(f"({letter}) {title}" if len(panels) > 1 else title)
            ax.set_ylabel("win rate over SFT (%)" if ax in axes[:, 0] else "")
        for ax in axes.flat[len(panels) :]:
            ax.remove()
        families = {str(runs[name]["family"]) for name in table["run"].unique()}
        style.save(figure, output, "Figure 4. Win rates of the variants", captions.win_rates(table, families))

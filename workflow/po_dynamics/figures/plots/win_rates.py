"""Figure 4: win rates over the SFT model, a panel per kind of variant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from po_dynamics.errors import InputError
from po_dynamics.figures import captions, claims, lines, style
from po_dynamics.figures.labels import run_labels, title_of
from po_dynamics.figures.rows import select
from po_dynamics.objectives.families import Runs, is_uncontrolled, uncontrolled_run

# Title and the objectives in it. Any other objective gets a panel of its own.
_PANELS = (
    ("DPO ablations", ("dpo_no_neg", "dpo_no_pos")),
    ("PPO ablations", ("ppo_no_top", "ppo_no_mid")),
    ("cDPO: POS first, NEG later", ("cdpo", "dpo_switch")),
    ("cPPO: TOP tokens scaled", ("cppo_top",)),
    ("cPPO: MID tokens scaled", ("cppo_mid",)),
    ("hPPO: NEG weakened in waves", ("hppo",)),
)


def draw_win_rates(win_rates: pd.DataFrame, output: Path, *, model: str, runs: Runs) -> None:
    """Win rate over the SFT model against the steps; a panel per kind of variant, its parent in each.

    Args:
        win_rates: `win_rates.csv`. Runs that `runs` does not know (the base model) are left out.
        output: the PNG.

    Raises:
        InputError: when no run of the model was judged.
    """
    table = select(win_rates, {"model": model}, "win rates")
    table = table[table["run"].isin(list(runs))]
    panels = _panels({name: runs[name] for name in runs if name in set(table["run"])})
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
            _draw_panel(ax, table, names, runs, limits)
            ax.set_title(f"({letter}) {title}" if len(panels) > 1 else title)
            ax.set_ylabel("win rate over SFT (%)" if ax in axes[:, 0] else "")
        for ax in axes.flat[len(panels) :]:
            ax.remove()
        families = {str(runs[name]["family"]) for name in table["run"].unique()}
        style.save(figure, output, "Figure 4. Win rates of the variants", _caption(table, families))


def _panels(runs: Runs) -> list[tuple[str, list[str]]]:
    """(title, runs): the paper's panels, then one per other objective; the uncontrolled run comes first in each.

    An uncontrolled run without variants has a panel of its own.
    """
    parents = {name: uncontrolled_run(run["family"], runs) for name, run in runs.items()}
    objectives = dict.fromkeys(str(run["objective"]) for run in runs.values())
    covered = {objective for _, group in _PANELS for objective in group}
    others = [(title_of(objective), (objective,)) for objective in objectives if objective not in covered]
    panels: list[tuple[str, list[str]]] = []
    for title, group in (*_PANELS, *others):
        members = [name for name, run in runs.items() if run["objective"] in group and parents[name] != name]
        if members:
            parent = parents[members[0]]
            panels.append((title, [*([parent] if parent else []), *members]))
    shown = {name for _, names in panels for name in names}
    return panels + [(title_of(str(run["objective"])), [name]) for name, run in runs.items() if name not in shown]


def _limits(table: pd.DataFrame, family: str, runs: Runs) -> tuple[float, float]:
    """Shared limits of a family's panels, so that their heights can be compared."""
    of_family = table[[runs[name]["family"] == family for name in table["run"]]]
    if of_family.empty:
        return (0, 100)
    low, high = min(of_family["low"].min(), 50), max(of_family["high"].max(), 50)
    margin = 0.04 * (high - low) + 0.5
    return low - margin, high + margin


def _draw_panel(
    ax: Axes, table: pd.DataFrame, names: Sequence[str], runs: Runs, limits: Mapping[str, tuple[float, float]]
) -> None:
    """The runs of one family; the first is drawn in grey if it is uncontrolled."""
    family = str(runs[names[-1]]["family"])
    labels = run_labels(names, runs)
    with_parent = is_uncontrolled(runs[names[0]]["objective"])
    variants: Iterable[str] = names[1:] if with_parent else names
    shown = {name: (labels[name], lines.VARIANTS[i % len(lines.VARIANTS)]) for i, name in enumerate(variants)}
    if with_parent:
        shown = {names[0]: (labels[names[0]], lines.PARENT)} | shown
    lines.step_axis(ax, family, "")
    lines.level(ax, 50)
    for name, (_, line) in shown.items():
        lines.draw_table(ax, table[table["run"] == name], "win_rate", line, ("low", "high"))
    ax.set_ylim(limits[family])
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    lines.label_lines(ax, lines.ends(table, "run", "win_rate", shown), gap=0.11)


def _caption(table: pd.DataFrame, families: Iterable[str]) -> str:
    repeated = table.groupby(["run", "step"]).size().max() > 1
    claimed = [claim for family in sorted(families) for claim in claims.claims_of("4", family)]
    other_order = "; ".join(dict.fromkeys(claim.contradiction for claim in claimed)).capitalize()
    shown = f"""Win rate over the SFT model's responses on {table["model"].iloc[0]}, judge “{table["judge"].iloc[0]}”,
        both orders, {captions.span(table["n"])} prompts a checkpoint; 50 % is a draw. Bands: 95 % bootstrap intervals
        over prompts, one per seed{", thin lines the seeds, thick lines their mean" if repeated else ""}; they do not
        cover the training's own randomness, which can be as large as the gaps between lines: for the difference of two
        runs see the results table. Dotted grey: the uncontrolled run."""
    claim = f"""{claims.source("4")} {claims.reading(claimed)} {other_order}, would contradict it; where intervals
        overlap much, this experiment is too small to tell."""
    return captions.paragraphs(shown, claim)

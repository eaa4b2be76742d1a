"""Figure 3: the mean signed advantage of the tokens of a run's roll-outs."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from po_dynamics.figures import captions, claims, lines, style
from po_dynamics.figures.labels import run_labels
from po_dynamics.figures.rows import select
from po_dynamics.objectives.families import Runs

_GROUPS = ("TOP", "MID", "BOT")
_PANELS = (("advantage", "as the loss uses it"), ("raw_advantage", "before whitening"))


def draw_advantages(
    advantages: pd.DataFrame, output: Path, *, model: str, run: str, runs: Runs, final_set: str = "heldout"
) -> None:
    """Mean signed advantage of the TOP, MID and BOT tokens, (a) as the loss uses it and (b) before whitening.

    Args:
        advantages: `model, run, seed, step, final_set, group, raw_advantage, advantage, n`: means over n tokens.
        output: the PNG.

    Raises:
        InputError: when the table has no such rows.
    """
    table = select(advantages, {"model": model, "run": run, "final_set": final_set}, "advantages")
    table = table[table["group"].isin(_GROUPS)]
    label = run_labels([run], runs, with_objective=True)[run]
    shown = {name: (name, lines.COMPONENTS[name]) for name in _GROUPS}
    with style.theme():
        figure, axes = plt.subplots(1, 2, figsize=(6.0, 2.35), gridspec_kw={"wspace": 0.7})
        for ax, (column, title), letter in zip(axes, _PANELS, "ab", strict=True):
            lines.step_axis(ax, "online", f"({letter}) {title}")
            lines.level(ax, 0)
            for name, (_, line) in shown.items():
                lines.draw_table(ax, table[table["group"] == name], column, line)
            lines.label_lines(ax, lines.ends(table, "group", column, shown))
        axes[0].set_ylabel("mean signed Â of a token")
        axes[1].set_ylabel("mean GAE, reward units")
        style.save(figure, output, f"Figure 3. {label}: mean advantages", _caption(table, label))


def _caption(table: pd.DataFrame, label: str) -> str:
    shown = f"""Mean advantage of the tokens of fresh roll-outs of {label} on {table["model"].iloc[0]},
        {captions.seeds(table["seed"])}, by thirds of |Â| at each checkpoint ({captions.span(table["n"])} tokens in a
        group). (a) Signed Â as the loss uses it, whitened over the roll-outs, of which the thirds are made: the paper's
        “raw” advantages are signed ones instead of absolute ones, so its claim is about this panel. (b) The estimate
        before whitening (GAE), in units of reward: an error of the critic that all tokens share shifts its three lines
        together and is not in (a)."""
    return captions.paragraphs(shown, claims.paragraph("3", "online"))

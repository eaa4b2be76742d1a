"""Why both fall: log π of chosen and rejected, what their own step would do to them, norms and cosine of the parts."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from po_dynamics.figures import captions, lines, style
from po_dynamics.figures.labels import run_labels
from po_dynamics.figures.rows import select
from po_dynamics.objectives.families import Runs

_CHOSEN, _REJECTED = lines.COMPONENTS["POS"], lines.COMPONENTS["NEG"]
_LIKELIEST, _FINAL = lines.COMPONENTS["MID"], lines.COMPONENTS["TOP"]
_KINDS = {
    "chosen": ("chosen", _CHOSEN),
    "rejected": ("rejected", _REJECTED),
    "chosen_argmax": ("likeliest token", _LIKELIEST),
    "greedy": ("own final answers", _FINAL),
}
_CONDITION = {"lowers_chosen": ("lowers chosen", _CHOSEN), "raises_rejected": ("raises rejected", _REJECTED)}
_HAPPENED = {"chosen_fell": ("chosen fell", _CHOSEN), "rejected_rose": ("rejected rose", _REJECTED)}
_NORMS = {"positive_norm": ("‖g⁺‖", _CHOSEN), "negative_norm": ("‖g⁻‖", _REJECTED)}
_COSINE = {"cosine": ("g⁺, g⁻", lines.COMPONENTS["TOT"])}
# Title, vertical axis (with the panel to its right), lines by quantity.
_PANELS = (
    ("log π per response", "change, nats", {f"{kind}_per_response": line for kind, line in _KINDS.items()}),
    ("log π per token", "", {f"{kind}_per_token": line for kind, line in _KINDS.items()}),
    ("what their own step would do", "share of mini-batches", _CONDITION),
    ("what the next checkpoint shows", "", _HAPPENED),
    ("norms", "mean", _NORMS),
    ("cosine", "", _COSINE),
)


def draw_displacement(
    displacement: pd.DataFrame, output: Path, *, model: str, run: str, runs: Runs, final_set: str = "heldout"
) -> None:
    """Change of log π, the two shares by condition and as they happened, and the norms and cosine of g⁺ and g⁻.

    Args:
        displacement: of `displacement.displacement`.
        output: the PNG.

    Raises:
        InputError: when the table has no rows of the model, run and final set.
    """
    table = select(displacement, {"model": model, "run": run, "final_set": final_set}, "displacement")
    label, family = run_labels([run], runs, with_objective=True)[run], runs[run]["family"]
    with style.theme():
        grid = {"wspace": 0.8, "hspace": 0.4}
        figure, axes = plt.subplots(3, 2, figsize=(6.0, 6.2), sharex=True, gridspec_kw=grid)
        for ax, letter, (title, y_label, shown) in zip(axes.flat, "abcdef", _PANELS, strict=True):
            lines.step_axis(ax, family, f"({letter}) {title}", x_label=letter in "ef")
            ax.set_ylabel(y_label)
            _draw(ax, table[table["quantity"].isin(shown)], shown)
        title = f"Why do both fall? {label}: log π of chosen and rejected"
        style.save(figure, output, title, _caption(table, label))


def _draw(ax: Axes, table: pd.DataFrame, shown: dict[str, tuple[str, lines.Line]]) -> None:
    """A line with its band for each quantity; says so where none was measured."""
    if table.empty:
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", va="center", color="#777777")
        return
    lines.level(ax, 0)
    for quantity, (_, line) in shown.items():
        lines.draw_table(ax, table[table["quantity"] == quantity], "value", line, ("low", "high"))
    if table["quantity"].iloc[0] in {**_CONDITION, **_HAPPENED}:
        ax.set_ylim(-0.04, 1.04)
    lines.label_lines(ax, lines.ends(table, "quantity", "value", shown), gap=0.1)


def _caption(table: pd.DataFrame, label: str) -> str:
    counts = table.groupby("quantity")["n"].max()
    measured = counts.get("cosine", 0)
    about = f"""{label} on {table["model"].iloc[0]}, {captions.seeds(table["seed"])}: {counts["chosen_per_response"]:,}
        preference pairs and {counts["greedy_per_response"]:,} of the run's own final answers, the same at every
        checkpoint. (a, b) Mean change of log π since the first checkpoint of the chosen and rejected responses, of the
        likeliest token at every position of the chosen ones, and of the final answers. (c) Share of {measured:,}
        mini-batches on which a step of plain gradient descent would, to first order, lower its own chosen responses
        (⟨g⁺, g⁻⟩ > ‖g⁺‖²) or raise its own rejected ones (⟨g⁺, g⁻⟩ > ‖g⁻‖²). (d) Share whose chosen have fallen, whose
        rejected have risen, at the next checkpoint. (e, f) Norms and cosine of g⁺ and g⁻, the directions that raise the
        chosen and the rejected as the loss weighs them; means over mini-batches."""
    bands = """Bands: 95 %, per seed, over mini-batches, resampled in (a, b, e, f), Wilson in (c, d); not over
        trainings. Between checkpoints lie many steps on other pairs: where (c) is near 0 and (d) is not, it is not the
        plain step on a pair itself that does it."""
    return captions.paragraphs(about, bands)

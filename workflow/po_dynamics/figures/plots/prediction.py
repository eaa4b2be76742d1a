"""The predictive check: does what G says about the final responses happen?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from po_dynamics.figures import captions, lines, style
from po_dynamics.figures.labels import run_labels
from po_dynamics.figures.rows import select
from po_dynamics.objectives.families import Runs

_TITLES = {"predicted": "gradient descent, −G", "predicted_adamw": "AdamW, −⟨v, P⁻¹∇L⟩"}
_NAMES = {"predicted": "G", "predicted_adamw": "the AdamW-aware G"}


def draw_prediction(
    prediction: pd.DataFrame,
    rank_correlation: pd.DataFrame,
    output: Path,
    *,
    model: str,
    run: str,
    runs: Runs,
    final_set: str = "heldout",
) -> None:
    """Change of the NLL of the final responses between checkpoints against −G, plain and for AdamW.

    Args:
        prediction: of `observables.prediction`: `change` (nats per step), `predicted`, `predicted_adamw`, `step`.
        rank_correlation: of `observables.rank_correlation`, for the caption.
        output: the PNG.

    Raises:
        InputError: when a table has no rows of the model, run and final set.
    """
    wanted = {"model": model, "run": run, "final_set": final_set}
    table = select(prediction, wanted, "prediction").dropna(subset=["change"])
    correlations = select(rank_correlation, wanted, "rank correlations").set_index("predictor")
    columns = [column for column in _TITLES if table[column].notna().any()]
    label, family = run_labels([run], runs, with_objective=True)[run], runs[run]["family"]
    with style.theme():
        size, grid = (2.7 * len(columns) + 0.5, 2.3), {"wspace": 0.3}
        figure, axes = plt.subplots(1, len(columns), figsize=size, squeeze=False, sharey=True, gridspec_kw=grid)
        for ax, column, letter in zip(axes.flat, columns, "ab", strict=False):
            dots = _scatter(ax, table, column)
            ax.set_title(f"({letter}) {_TITLES[column]}" if len(columns) > 1 else _TITLES[column])
            ax.set_xlabel("predicted change, arbitrary unit")
        axes[0, 0].set_ylabel("change of the NLL of the\nfinal responses, nats per step")
        figure.colorbar(dots, ax=axes, label=lines.STEPS[family], pad=0.02, fraction=0.05)
        title = f"Predictive check. {label}: does G say what happens to the final responses?"
        style.save(figure, output, title, _caption(table, correlations, label))


def _scatter(ax: Axes, table: pd.DataFrame, column: str) -> Any:
    """Change against prediction, coloured by the step at which the interval begins; a marker per seed."""
    look: dict[str, Any] = {"cmap": "viridis", "s": 22, "edgecolors": "white", "linewidths": 0.5}
    look |= {"vmin": table["step"].min(), "vmax": table["step"].max()}
    for axis in (ax.axhline, ax.axvline):
        axis(0, color="#777777", linewidth=0.7, zorder=1)
    for marker, (_, of_seed) in zip("osD^vPX" * 10, table.groupby("seed"), strict=False):
        dots = ax.scatter(of_seed[column], of_seed["change"], c=of_seed["step"], marker=marker, zorder=2, **look)
    ax.ticklabel_format(scilimits=(-3, 4))
    sns.despine(ax=ax)
    return dots


def _caption(table: pd.DataFrame, correlations: pd.DataFrame, label: str) -> str:
    """`correlations` by predictor."""
    found = [
        f"{rho:.2f} ({low:.2f} to {high:.2f}) for {_NAMES[str(name)]}"
        for name, (rho, low, high) in correlations[["rho", "low", "high"]].dropna().iterrows()
    ]
    shown = f"""Change of the negative log-likelihood of the final responses of {label} on {table["model"].iloc[0]}
        between neighbouring checkpoints, per step, against what the mean alignment of the two predicts to first
        order; {captions.plural(len(table), "pair")} of checkpoints, {captions.seeds(table["seed"])}, a marker per
        seed, colour the earlier checkpoint. Spearman's ρ with 95 % bootstrap interval:
        {"; ".join(found) or "too few pairs"}."""
    meaning = """If G means what its definition says, the dots rise from left to right; ρ near 0 or below would
        contradict that, and with it any reading of the signs of G over gaps as long as these between checkpoints."""
    return captions.paragraphs(shown, meaning)

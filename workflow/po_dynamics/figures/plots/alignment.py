"""Figures 1, 2 and 7(b): the gradient alignment G of a run over its steps, whole and by component."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from po_dynamics.figures import captions, claims, lines, style
from po_dynamics.figures.labels import run_labels
from po_dynamics.figures.rows import select
from po_dynamics.objectives.families import Runs

_OF = ("model", "run", "final_set", "filtered")
_PANELS = (("TOT",), ("POS", "NEG"), ("TOP", "MID", "BOT"))
_TITLES = {
    "offline": ("whole objective", "by sign", "by weight ω"),
    "online": ("whole objective", "by sign", "by weight |Â|"),
}
_PARTS = {
    "offline": "(b) the chosen (POS) and rejected (NEG) responses; (c) pairs by thirds of the weight ω",
    "online": "(b) tokens with advantage ≥ 0 (POS) and < 0 (NEG); (c) tokens by thirds of |Â|",
}


def draw_alignment(
    dynamics: pd.DataFrame,
    resolution: pd.DataFrame,
    output: Path,
    *,
    model: str,
    run: str,
    runs: Runs,
    final_set: str = "heldout",
    filtered: bool = True,
) -> None:
    """G over the steps of one run: (a) TOT (b) POS, NEG (c) TOP, MID, BOT where weights differ; symmetric-log scale.

    Args:
        dynamics: `dynamics.parquet`; the rows of the model, run, final set, and filter are drawn, all seeds.
        resolution: `resolution.csv`, for the caption: which signs are known.
        output: the PNG.

    Raises:
        InputError: when the table has no such rows.
    """
    wanted = {"model": model, "run": run, "final_set": final_set, "filtered": filtered, "segment": "all"}
    table = _meaningful(select(dynamics, wanted, "dynamics"))
    family, label = runs[run]["family"], run_labels([run], runs, with_objective=True)[run]
    linear = _linear_threshold(table["G"])
    with style.theme():
        figure, axes = plt.subplots(1, 3, figsize=(7.2, 2.35), sharex=True, sharey=True, gridspec_kw={"wspace": 0.34})
        axes[0].set_yscale("symlog", linthresh=linear, linscale=0.6)
        for ax, names, letter, title in zip(axes, _PANELS, "abc", _TITLES[family], strict=True):
            lines.step_axis(ax, family, f"({letter}) {title}")
            lines.level(ax, 0)
            for name in names:
                of_component = table[table["component"] == name]
                lines.draw_table(ax, of_component, "G", lines.COMPONENTS[name], ("G_low", "G_high"), known="resolved")
        axes[0].set_ylabel("gradient alignment G")
        _thin_symlog_ticks(axes[0])
        for ax, names in zip(axes, _PANELS, strict=True):
            shown = {name: (name, lines.COMPONENTS[name]) for name in names}
            lines.label_lines(ax, lines.ends(table, "component", "G", shown))
        number = "7(b)" if final_set == "train" else {"offline": "1", "online": "2"}[family]
        title = f"Figure {number}. {label}: which components lead to the final responses"
        claim = claims.paragraph(number, runs[run]["objective"])
        of_run = (resolution[list(_OF)] == [wanted[key] for key in _OF]).all(axis=1)
        known = captions.signs(resolution[of_run])
        style.save(figure, output, title, _caption(table, family, label, linear, known, claim))


def _meaningful(table: pd.DataFrame) -> pd.DataFrame:
    """Without the groups by weight where all weights are equal: which samples are in them would be chance."""
    return table[~(table["equal_weights"] & table["component"].isin(_PANELS[2]))]


def _linear_threshold(values: pd.Series) -> float:
    """Where the symmetric-log scale turns linear: a power of ten below most values, at most five decades down."""
    sizes = values.abs()[values != 0]
    if sizes.empty:
        return 1.0
    return float(10 ** np.floor(np.log10(max(np.quantile(sizes, 0.2), sizes.max() * 1e-5))))


def _thin_symlog_ticks(ax: Axes) -> None:
    """At most nine labels: matplotlib labels every decade, which overlap."""
    low, high = ax.get_ylim()
    ticks = [tick for tick in ax.get_yticks() if low <= tick <= high]
    sizes = sorted({abs(tick) for tick in ticks if tick})[:: -(-len(ticks) // 9)]
    ax.set_yticks([tick for tick in ticks if tick == 0 or abs(tick) in sizes])


def _caption(table: pd.DataFrame, family: str, label: str, linear: float, known: str, claim: str) -> str:
    """`table` holds the rows that are drawn; `linear` is half the linear part of the scale."""
    first, total = table.iloc[0], table[table["component"] == "TOT"]
    prompts = {"heldout": "held-out prompts", "train": "training prompts"}[first["final_set"]]
    left = [captions.span(total[name]) for name in ("n_outliers", "n_final_outliers")]
    outliers = f"{left[0]} and {left[1]} outlying mini-batches left out" if first["filtered"] else "outliers included"
    thin = ", thin lines the seeds, thick lines their mean" if total["seed"].nunique() > 1 else ""
    equal = sorted(total.loc[total["equal_weights"], "step"].unique())
    left_out = f" (not at step {', '.join(map(str, equal))}, where all weights are equal)" if equal else ""
    shown = f"""Gradient alignment G of {label} on {first["model"]} at
        {captions.plural(total["step"].nunique(), "checkpoint")}, {captions.seeds(total["seed"])}: the inner product
        of the gradient of the loss with that of the negative log-likelihood of the run's final responses, to
        {prompts}. G > 0: a step on this component makes the final responses likelier. (a) The whole objective (TOT);
        {_PARTS[family]}: TOP, MID and BOT{left_out}. Symmetric-log scale, linear within ±{linear:.0e}. Bands: 95 %
        bootstrap intervals over {captions.span(total["n_train"])} samples of D and {captions.span(total["n_final"])} of
        D′ ({outliers}), one per seed{thin}{_one_way(table)}. Hollow points: sign not known, for the interval of a seed
        includes 0, or seeds disagree. Signs of checkpoints and seeds: {known}."""
    return captions.paragraphs(shown, claim)


def _one_way(table: pd.DataFrame) -> str:
    """Says whose intervals leave out the choice of D′."""
    narrow = table.loc[~table["two_way"], "component"].unique()
    return f" (of {', '.join(narrow)} over D alone, so too narrow)" if len(narrow) else ""

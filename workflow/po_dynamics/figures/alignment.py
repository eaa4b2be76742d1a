"""The figures: tables in, PNG (200 dpi) and PDF out, identical for identical tables. No model is loaded here.

Every function draws one figure of one model, writes `output` and a PDF beside it, and puts title and caption into the
PNG's metadata. Runs are named by `runs`: run name → `objective`, `family`, `parameters`, as the configuration has them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from po_dynamics.figures import captions, style

_PANELS = (("TOT",), ("POS", "NEG"), ("TOP", "MID", "BOT"))


_TITLES = {
    "offline": ("whole objective", "by sign", "by weight ω"),
    "online": ("whole objective", "by sign", "by weight |Â|"),
}


# Figure 4's panels: title and the objectives in it; the uncontrolled run of the family is drawn in each.
_WIN_RATE_PANELS = (
    ("DPO ablations", ("dpo_no_neg", "dpo_no_pos")),
    ("PPO ablations", ("ppo_no_top", "ppo_no_mid")),
    ("cDPO: POS first, NEG later", ("cdpo", "dpo_switch")),
    ("cPPO: TOP tokens scaled", ("cppo_top",)),
    ("cPPO: MID tokens scaled", ("cppo_mid",)),
    ("hPPO: NEG weakened in waves", ("hppo",)),
)


def draw_alignment(
    dynamics: pd.DataFrame,
    output: Path,
    *,
    model: str,
    run: str,
    runs: style.Runs,
    final_set: str = "heldout",
    filtered: bool = True,
    segment: str = "all",
) -> None:
    """Figures 1 and 2: G over the steps of one run; (a) TOT (b) POS, NEG (c) TOP, MID, BOT; symmetric-log scale.

    Args:
        dynamics: `dynamics.parquet`; the rows of the model, run, final set, filter and segment are drawn, all seeds.
        output: the PNG.

    Raises:
        InputError: when the table has no such rows.
    """
    wanted = {"model": model, "run": run, "final_set": final_set, "filtered": filtered, "segment": segment}
    table = style.select(dynamics, wanted, "dynamics")
    family, label = runs[run]["family"], style.run_labels([run], runs, with_objective=True)[run]
    linear = _linear_threshold(table["G"])
    with style.theme():
        figure, axes = plt.subplots(1, 3, figsize=(7.2, 2.35), sharey=True, gridspec_kw={"wspace": 0.34})
        axes[0].set_yscale("symlog", linthresh=linear, linscale=0.6)
        for ax, names, letter, title in zip(axes, _PANELS, "abc", _TITLES[family], strict=True):
            style.step_axis(ax, family, f"({letter}) {title}")
            ax.axhline(0, color="#777777", linewidth=0.7, zorder=1)
            for name in names:
                of_component = table[table["component"] == name]
                style.draw_table(ax, of_component, "G", style.COMPONENTS[name], ("G_low", "G_high"))
        axes[0].set_ylabel("gradient alignment G")
        _thin_symlog_ticks(axes[0])
        for ax, names in zip(axes, _PANELS, strict=True):
            lines = {name: style.COMPONENTS[name] for name in names}
            style.label_lines(
                ax, style.ends(table, "component", "G", {name: (name, line) for name, line in lines.items()})
            )
        number = "7(b)" if final_set == "train" else {"offline": "1", "online": "2"}[family]
        title = f"Figure {number}. {label}: which components lead to the final responses"
        objective = str(runs[run]["objective"])
        style.save(figure, output, title, captions.alignment(table, objective, family, label, filtered, linear))


def draw_advantages(
    advantages: pd.DataFrame, output: Path, *, model: str, run: str, runs: style.Runs, final_set: str = "heldout"
) -> None:
    """Figure 3: mean signed advantage of the TOP, MID and BOT tokens, (a) raw and (b) whitened.

    Args:
        advantages: `model, run, seed, step, final_set, group, raw_advantage, advantage, n`: means over n tokens.
    """
    table = style.select(advantages, {"model": model, "run": run, "final_set": final_set}, "advantages")
    table = table[table["group"].isin(_PANELS[2])]
    label = style.run_labels([run], runs, with_objective=True)[run]
    panels = (("raw_advantage", "raw, in units of reward"), ("advantage", "whitened"))
    with style.theme():
        figure, axes = plt.subplots(1, 2, figsize=(5.4, 2.35), gridspec_kw={"wspace": 0.5})
        for ax, (column, title), letter in zip(axes, panels, "ab", strict=True):
            style.step_axis(ax, "online", f"({letter}) {title}")
            ax.axhline(0, color="#777777", linewidth=0.7, zorder=1)
            lines = {name: (name, style.COMPONENTS[name]) for name in _PANELS[2]}
            for name, (_, line) in lines.items():
                style.draw_table(ax, table[table["group"] == name], column, line)
            style.label_lines(ax, style.ends(table, "group", column, lines))
        axes[0].set_ylabel("mean advantage of a token")
        style.save(figure, output, f"Figure 3. {label}: mean advantages", captions.advantages(table, label))


def draw_prediction(
    prediction: pd.DataFrame,
    correlations: pd.DataFrame,
    output: Path,
    *,
    model: str,
    run: str,
    runs: style.Runs,
    final_set: str = "heldout",
) -> None:
    """Does G predict? Change of the NLL of the final responses between checkpoints against −G, plain and for AdamW.

    Args:
        prediction: of `observables.prediction`: `change` (nats per step), `predicted`, `predicted_adamw`, `step`.
        correlations: of `observables.rank_correlation`, for the caption.
    """
    wanted = {"model": model, "run": run, "final_set": final_set}
    table = style.select(prediction, wanted, "prediction").dropna(subset=["change"])
    rho = style.select(correlations, wanted, "rank correlations").set_index("predictor")
    titles = {"predicted": "gradient descent, −G", "predicted_adamw": "AdamW, −⟨v, P⁻¹∇L⟩"}
    columns = [column for column in titles if table[column].notna().any()]
    label, family = style.run_labels([run], runs, with_objective=True)[run], runs[run]["family"]
    with style.theme():
        size, grid = (2.7 * len(columns) + 0.5, 2.3), {"wspace": 0.3}
        figure, axes = plt.subplots(1, len(columns), figsize=size, squeeze=False, sharey=True, gridspec_kw=grid)
        for ax, column, letter in zip(axes.flat, columns, "ab", strict=False):
            dots = _scatter(ax, table, column)
            ax.set_title(f"({letter}) {titles[column]}" if len(columns) > 1 else titles[column])
            ax.set_xlabel("predicted change, arbitrary unit")
        axes[0, 0].set_ylabel("change of the NLL of the\nfinal responses, nats per step")
        figure.colorbar(dots, ax=axes, label=style.STEPS[family], pad=0.02, fraction=0.05)
        title = f"Predictive check. {label}: does G say what happens to the final responses?"
        style.save(figure, output, title, captions.prediction(table, rho, label))


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


def _win_rate_panels(names: Sequence[str], runs: style.Runs) -> list[tuple[str, list[str]]]:
    """(title, runs) of Figure 4: the paper's panels, then one per other objective; the parent comes first in each."""
    panels, rest = [], list(names)
    parents = {name: _parent(name, names, runs) for name in names}
    others = dict.fromkeys(str(runs[name]["objective"]) for name in names)
    covered = {objective for _, objectives in _WIN_RATE_PANELS for objective in objectives}
    extra = [(style.TITLES.get(objective, objective), (objective,)) for objective in others if objective not in covered]
    for title, objectives in (*_WIN_RATE_PANELS, *extra):
        members = [name for name in names if runs[name]["objective"] in objectives and parents[name] != name]
        if members:
            parent = parents[members[0]]
            panels.append((title, [*([parent] if parent else []), *members]))
            rest = [name for name in rest if name not in panels[-1][1]]
    return panels + [(style.TITLES.get(str(runs[name]["objective"]), name), [name]) for name in rest]


def _parent(name: str, names: Sequence[str], runs: style.Runs) -> str | None:
    """The first uncontrolled run of the family, itself included; None when there is none."""
    objective = {"offline": "dpo", "online": "ppo"}[runs[name]["family"]]
    return next((other for other in names if runs[other]["objective"] == objective), None)


def _limits(table: pd.DataFrame, family: str, runs: style.Runs) -> tuple[float, float]:
    """Shared limits of a family's panels, so that their heights can be compared."""
    of_family = table[[runs[name]["family"] == family for name in table["run"]]]
    if of_family.empty:
        return (0, 100)
    low, high = min(of_family["low"].min(), 50), max(of_family["high"].max(), 50)
    margin = 0.04 * (high - low) + 0.5
    return low - margin, high + margin


def _draw_win_rates(
    ax: Axes, table: pd.DataFrame, names: Sequence[str], runs: style.Runs, limits: Mapping[str, tuple[float, float]]
) -> None:
    family = str(runs[names[-1]]["family"])
    labels = style.run_labels(names, runs)
    uncontrolled = runs[names[0]]["objective"] in ("dpo", "ppo")
    variants: Iterable[str] = names[1:] if uncontrolled else names
    lines = {name: (labels[name], style.VARIANTS[i % len(style.VARIANTS)]) for i, name in enumerate(variants)}
    if uncontrolled:
        lines = {names[0]: (labels[names[0]], style.PARENT)} | lines
    style.step_axis(ax, family, "")
    ax.axhline(50, color="#777777", linewidth=0.7, zorder=1)
    for name, (_, line) in lines.items():
        style.draw_table(ax, table[table["run"] == name], "win_rate", line, ("low", "high"))
    ax.set_ylim(limits[family])
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    style.label_lines(ax, style.ends(table, "run", "win_rate", lines), gap=0.11)


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

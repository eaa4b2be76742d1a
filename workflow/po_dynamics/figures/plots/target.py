"""How far policies are from the target that their objectives share, over training."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from po_dynamics.figures import captions, lines, style
from po_dynamics.figures.labels import run_labels
from po_dynamics.figures.lines import Line
from po_dynamics.figures.rows import select
from po_dynamics.objectives.families import Runs


def draw_target(target: pd.DataFrame, output: Path, *, model: str, runs: Runs) -> None:
    """KL(π ‖ π^τ) of every run over its training; a panel per τ.

    Args:
        target: of `evaluation.distances`, with a column `model`.
        output: the PNG.

    Raises:
        InputError: when the table has no rows of the model.
    """
    table = select(target, {"model": model}, "target")
    table = table[table["run"].isin(list(runs))]
    taus, names = sorted(table["tau"].unique()), list(dict.fromkeys(filter(set(table["run"]).__contains__, runs)))
    labels = run_labels(names, runs, with_objective=True)
    shown = {name: (labels[name], lines.VARIANTS[i % len(lines.VARIANTS)]) for i, name in enumerate(names)}
    with style.theme():
        size = (3.4 * len(taus), 2.35)
        figure, axes = plt.subplots(1, len(taus), figsize=size, squeeze=False, gridspec_kw={"wspace": 0.6})
        for ax, tau, letter in zip(axes.flat, taus, "abcdefghijklmnopqrstuvwxyz", strict=False):
            _panel(ax, table[table["tau"] == tau], shown)
            ax.set_title(f"({letter}) τ = {tau:g}")
        axes[0, 0].set_ylabel("KL(π ‖ π$^τ$), nats")
        style.save(figure, output, "Distance to the target that the objectives share", _caption(table, labels))


def _panel(ax: Axes, table: pd.DataFrame, shown: dict[str, tuple[str, Line]]) -> None:
    """Distance against the share of the training that is done, as runs differ in what a step is."""
    table = table.assign(step=100 * table["step"] / table.groupby("run")["step"].transform("max"))
    for name, (_, line) in shown.items():
        lines.draw_table(ax, table[table["run"] == name], "kl_to_target", line, ("low", "high"))
    ax.set_ylim(bottom=min(0, table["low"].min()))
    ax.set_xlabel("training done (%)")
    sns.despine(ax=ax)
    lines.label_lines(ax, lines.ends(table, "run", "kl_to_target", shown), gap=0.09)


def _caption(table: pd.DataFrame, labels: dict[str, str]) -> str:
    """What is shown, of how much, how far log Z can be trusted, and what would contradict a shared target."""
    of_tau = table.groupby("tau").first()
    prompts = int(table["prompts"].iloc[0])
    trusted = "; ".join(
        f"τ = {tau:g}: {row['log_z']:.2f}, with the jackknife {row['log_z_jackknife']:.2f}, effective samples "
        f"{row['ess']:.0f} (median), too few for {row['n_low_ess']:.0f} of {prompts} prompts"
        for tau, row in of_tau.iterrows()
    )
    own = table[table["own_tau"]].groupby("tau", sort=True)["run"].unique()
    owned = "; ".join(f"{', '.join(labels[run] for run in dict.fromkeys(found))} {tau:g}" for tau, found in own.items())
    shown = f"""KL(π ‖ π^τ) = KL(π ‖ π_ref) − E_π[r]/τ + log Z to the target π^τ ∝ π_ref exp(r/τ) on
        {table["model"].iloc[0]}: π_ref is the SFT model (0 %); responses sampled to
        {captions.plural(prompts, "prompt")}. Bands: 95 % bootstrap intervals over prompts, one per seed; thin lines the
        seeds, thick lines their mean. Each run's own τ (β, or PPO's KL coefficient): {owned}."""
    limits = f"""log Z by importance sampling from the SFT model and all last checkpoints (mean over prompts):
        {trusted}. It is too low on average where few samples carry it, and with it the height of all lines; differences
        between lines and along them need no log Z."""
    meaning = """One target for all objectives, our reading of arXiv 2502.03095, would be contradicted by a line that
        does not fall at the run's own τ; at another τ a line may rise."""
    return captions.paragraphs(shown, limits, meaning)

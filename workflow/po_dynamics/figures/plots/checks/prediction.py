"""The predictive check: does what G says about the final responses happen, and is it more than the step number says?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from po_dynamics.figures import captions, lines, style
from po_dynamics.figures.labels import run_labels
from po_dynamics.figures.rows import select
from po_dynamics.objectives.families import Runs

_TITLES = {"predicted": "gradient descent, −Ση·G", "predicted_adamw": "AdamW, −Ση·⟨v, P⁻¹∇L⟩"}
_AXES = {"predicted": "predicted change, arbitrary unit", "predicted_adamw": "predicted change, nats per response"}
_NAMES = {"predicted": "G", "predicted_adamw": "the AdamW-aware G"}
_BASELINES = {"step": "the step number alone", "rate": "Ση alone"}


def draw_prediction(
    prediction: pd.DataFrame,
    prediction_tests: pd.DataFrame,
    output: Path,
    *,
    model: str,
    run: str,
    runs: Runs,
    final_set: str = "heldout",
) -> None:
    """Change of the NLL of the final responses between checkpoints against what G predicts, plain and for AdamW.

    Args:
        prediction: of `observables.prediction.changes`.
        prediction_tests: of `observables.prediction.assess`, for the caption.
        output: the PNG.

    Raises:
        InputError: when a table has no rows of the model, run and final set.
    """
    wanted = {"model": model, "run": run, "final_set": final_set}
    table = select(prediction, wanted, "prediction").dropna(subset=["change"])
    tests = select(prediction_tests, wanted, "tests of the prediction")
    columns = [column for column in _TITLES if table[column].notna().any()]
    label, family = run_labels([run], runs, with_objective=True)[run], runs[run]["family"]
    with style.theme():
        size, grid = (2.7 * len(columns) + 0.5, 2.3), {"wspace": 0.3}
        figure, axes = plt.subplots(1, len(columns), figsize=size, squeeze=False, sharey=True, gridspec_kw=grid)
        for ax, column, letter in zip(axes.flat, columns, "ab", strict=False):
            dots = _scatter(ax, table, column)
            ax.set_title(f"({letter}) {_TITLES[column]}" if len(columns) > 1 else _TITLES[column])
            ax.set_xlabel(_AXES[column])
            if column == "predicted_adamw":
                lines.diagonal(ax)
        axes[0, 0].set_ylabel("change of the NLL of the final\nresponses, nats per response")
        figure.colorbar(dots, ax=axes, label=lines.STEPS[family], pad=0.02, fraction=0.05)
        title = f"Predictive check. {label}: does G say what happens to the final responses?"
        style.save(figure, output, title, _caption(table, tests, label))


def _scatter(ax: Axes, table: pd.DataFrame, column: str) -> Any:
    """Change against prediction, coloured by the step at which the interval begins; a marker per seed."""
    look: dict[str, Any] = {"cmap": "viridis", "s": 22, "edgecolors": "white", "linewidths": 0.5}
    look |= {"vmin": table["step"].min(), "vmax": table["step"].max()}
    for axis in (ax.axhline, ax.axvline):
        axis(0, color="#777777", linewidth=0.7, zorder=1)
    for marker, (_, of_seed) in zip("osD^vPX" * 10, table.groupby("seed"), strict=False):
        dots = ax.scatter(of_seed[column], of_seed["change"], c=of_seed["step"], marker=marker, zorder=2, **look)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.ticklabel_format(scilimits=(-4, 4))
    sns.despine(ax=ax)
    return dots


def _caption(table: pd.DataFrame, tests: pd.DataFrame, label: str) -> str:
    shown = f"""Change of the negative log-likelihood of the final responses of {label} on {table["model"].iloc[0]}
        between neighbouring probed checkpoints, against what their alignment predicts to first order: minus the sum
        over the optimizer steps between of learning rate × G, with G linear from one checkpoint to the next;
        {captions.plural(len(table), "pair")} of checkpoints, {captions.seeds(table["seed"])}, a marker per seed, colour
        the earlier checkpoint. Plain G is of steps that the optimizer did not take: its unit means nothing. The
        AdamW-aware one is in nats; on the dashed line what was predicted is what happened."""
    missing = int(table["predicted_adamw"].isna().sum())
    if missing:
        shown += f""" There is no AdamW-aware prediction for {captions.plural(missing, "pair")} without optimizer state
        at an end (step 0 never has it)."""
    found = [_worth(of, str(name)) for name, of in tests.groupby("predictor") if of["value"].notna().any()]
    meaning = f"""{_meaning(table["seed"].nunique())} Momentum, clipping and weight decay are in no
        prediction, nor is what G does between the checkpoints."""
    return captions.paragraphs(shown, " ".join(found) or "Too few pairs for a correlation.", meaning)


def _meaning(seeds: int) -> str:
    """What the intervals are over, by the number of trainings."""
    over = "Intervals (95 %) resample trainings and, within each, blocks of neighbouring pairs"
    if seeds == 1:
        return f"{over}. Of one training they say how much hangs on single stretches, not what another would give."
    if seeds == 2:
        return f"{over}; two trainings hardly show how far others would differ."
    return f"{over}."


def _worth(tests: pd.DataFrame, predictor: str) -> str:
    """ρ of one predictor, beside its baselines on the same pairs, and its slope where it is in nats."""
    rows = {row["statistic"]: row for row in tests.to_dict("records")}
    name = _NAMES[predictor]
    text = f"Spearman's ρ with the change is {_stated(rows['rho'])} for {name}"
    for baseline, words in _BASELINES.items():
        text += f", {captions.number(rows[f'rho_{baseline}']['value'])} for {words}"
    text += f" (same {rows['rho']['n']} pairs). "
    verdicts = []
    for baseline, words in _BASELINES.items():
        over = rows[f"over_{baseline}"]
        verdict = (
            "says more than" if over["low"] > 0 else "says less than" if over["high"] < 0 else "is not known to beat"
        )
        partial = _stated(rows[f"partial_{baseline}"])
        verdicts.append(f"it {verdict} {words}: difference {_stated(over)}, ρ with that taken out {partial}")
    joined = "; ".join(verdicts)
    text += f"{joined[0].upper()}{joined[1:]}."
    if predictor == "predicted_adamw":
        text += f" Each predicted nat was {_stated(rows['slope'])} nats."
    return text


def _stated(row: Mapping[Any, Any]) -> str:
    return captions.with_interval(row["value"], row["low"], row["high"])

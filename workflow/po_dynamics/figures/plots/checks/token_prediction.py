"""Token by token: does log π of each token change as predicted?"""

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

LINEAR = 0.01  # nats: axes are linear within, logarithmic beyond

_SETS = {"final": ("final responses D′", "prompt"), "train": ("training pairs D", "pair")}
_PANELS = (("final", ("TOT",)), ("train", ("POS", "NEG")), ("train", ("TOP", "MID", "BOT")))
_TITLES = {("TOT",): "final responses", ("POS", "NEG"): "pairs, by sign", ("TOP", "MID", "BOT"): "pairs, by weight"}
_NAMES = {"POS": "chosen", "NEG": "rejected", "TOP": "top third", "MID": "middle", "BOT": "bottom third", "TOT": "all"}


def draw_token_prediction(
    token_bins: pd.DataFrame,
    token_prediction: pd.DataFrame,
    output: Path,
    *,
    model: str,
    run: str,
    runs: Runs,
    final_set: str = "heldout",
) -> None:
    """Median and quartiles of the realised change of log π by predicted change, of D′ and, offline, of D.

    Args:
        token_bins, token_prediction: of the functions of that name in `observables.token_prediction`.
        output: the PNG.

    Raises:
        InputError: when a table has no rows of the model, run and final set.
    """
    wanted = {"model": model, "run": run, "final_set": final_set}
    bins = select(token_bins, wanted, "binned tokens")
    in_nats = "predicted_adamw" in bins["predictor"].tolist()
    predictor = "predicted_adamw" if in_nats else "predicted"
    bins = bins[bins["predictor"] == predictor]
    statistics = select(token_prediction, {**wanted, "predictor": predictor}, "predictions of tokens")
    panels = [panel for panel in _PANELS if ((bins["set"] == panel[0]) & bins["component"].isin(panel[1])).any()]
    label = run_labels([run], runs, with_objective=True)[run]
    with style.theme():
        size, grid = (2.4 * len(panels), 2.2), {"wspace": 0.3}
        figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, gridspec_kw=grid)
        for ax, (side, components), letter in zip(axes.flat, panels, "abc", strict=False):
            _draw(ax, bins[bins["set"] == side], components)
            ax.set_title(f"({letter}) {_TITLES[components]}" if len(panels) > 1 else _TITLES[components])
            ax.set_xlabel("predicted change, nats" if in_nats else "predicted change,\narbitrary unit")
            if in_nats:
                _logarithmic(ax)
                lines.diagonal(ax)
        axes[0, 0].set_ylabel("realised change of log π\nof a token, nats")
        title = f"Token by token. {label}: does log π change as predicted?"
        style.save(figure, output, title, _caption(statistics, label, in_nats))


def _draw(ax: Axes, bins: pd.DataFrame, components: tuple[str, ...]) -> None:
    """Median of each bin, and its quartiles as a bar."""
    for axis in (ax.axhline, ax.axvline):
        axis(0, color="#777777", linewidth=0.7, zorder=1)
    for name in components:
        of, line = bins[bins["component"] == name], lines.COMPONENTS[name]
        bars = (of["median"] - of["q25"], of["q75"] - of["median"])
        look: dict[str, Any] = {
            "color": line.colour,
            "marker": line.marker,
            "markersize": 3,
            "elinewidth": 0.6,
            "linewidth": 0,
        }
        ax.errorbar(of["predicted"], of["median"], bars, label=_NAMES[name], zorder=2, **look)
    if len(components) > 1:
        ax.legend(loc="lower right", frameon=False, fontsize=7, handletextpad=0.2, borderaxespad=0.2)
    sns.despine(ax=ax)


def _logarithmic(ax: Axes) -> None:
    """Both axes symmetric-logarithmic, of one scale; on the narrower one no tick where the linear part ends."""
    for axis, scale, first in ((ax.xaxis, ax.set_xscale, 1), (ax.yaxis, ax.set_yscale, 0)):
        scale("symlog", linthresh=LINEAR)
        low, high = axis.get_view_interval()
        powers = [LINEAR * 10**power for power in range(first, 7)]
        ticks = [-tick for tick in reversed(powers)] + [0.0, *powers]
        axis.set_ticks([tick for tick in ticks if low <= tick <= high])
        axis.set_major_formatter("{x:g}")


def _caption(statistics: pd.DataFrame, label: str, in_nats: bool) -> str:
    whole = statistics[statistics["step"].isna()]
    scale = f"""; on the dashed line what was predicted is what happened; axes are linear within ±{LINEAR} nats and
        logarithmic beyond"""
    step = "AdamW (without momentum, clipping and weight decay)" if in_nats else "gradient descent"
    shown = f"""Realised against predicted change of log π of single tokens between neighbouring probed checkpoints of
        {label} on {statistics["model"].iloc[0]}: the prediction sums, over the optimizer steps between, learning rate ×
        the token's drift under {step}. Dots are medians of bins of as many tokens each, by prediction, bars
        quartiles{scale if in_nats else ""}."""
    shows = [(side, name) for side, components in _PANELS for name in components]
    texts = [_worth(whole, side, name, in_nats) for side, name in shows]
    clusters = """Intervals (95 %) resample prompts or pairs with all their tokens and seeds; the trainings are held
        fixed, so another training may give other numbers."""
    caveat = ""
    if (whole["set"] == "train").any():
        caveat = """Predictions on the training pairs hold each pair's pull on itself, with its weight among the pairs
            probed, which is larger than among those trained on: their slopes lean towards 0. The final responses were
            not trained on."""
    return captions.paragraphs(shown, " ".join(filter(None, texts)), f"{clusters} {caveat}")


def _worth(whole: pd.DataFrame, side: str, component: str, in_nats: bool) -> str:
    """The statistics of all tokens of a component; "" where there are none."""
    found = whole[(whole["set"] == side) & (whole["component"] == component)]
    if found.empty:
        return ""

    rows: dict[str, dict[Any, Any]] = {row["statistic"]: row for row in found.to_dict("records")}

    def stated(name: str) -> str:
        return captions.with_interval(rows[name]["value"], rows[name]["low"], rows[name]["high"])

    label, unit = _SETS[side]
    label += "" if component == "TOT" else f", {_NAMES[component]}"
    slope = (
        f"slope {stated('slope_origin')} through the origin, {stated('slope')} by least squares; " if in_nats else ""
    )
    over = rows["signs_over"]
    verdict = "more" if over["low"] > 0 else "less" if over["high"] < 0 else "not known to be more"
    n_tokens, n_samples = (rows["rho"][column] for column in ("n_tokens", "n_samples"))
    right, base = (f"{rows[name]['value']:.1%}" for name in ("signs_right", "signs_base"))
    return f"""{label[0].upper()}{label[1:]} ({captions.plural(n_tokens, "token")} over all intervals and seeds,
        {captions.plural(n_samples, unit)}): {slope}Spearman's ρ {stated("rho")}; the sign was right for {right},
        {verdict} than the {base} of always saying the commoner one."""

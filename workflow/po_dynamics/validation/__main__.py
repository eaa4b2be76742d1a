"""Puts the numbers into the page: `python -m po_dynamics.validation results/validation docs/validation.md`."""

from __future__ import annotations

import math
import sys
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from po_dynamics.errors import InputError
from po_dynamics.storage.atomic import atomic_file

BEGIN, END = "<!-- numbers: begin (written by `python -m po_dynamics.validation`) -->", "<!-- numbers: end -->"
SCORES = {
    "plain": "G, all checkpoints",
    "adamw": "AdamW's G, all checkpoints",
    "last": "G, last checkpoint alone",
    "last_adamw": "AdamW's G, last checkpoint alone",
    "lengths": "no gradient: tokens chosen − rejected",
}
OUTCOMES = {"change": "NLL of D′", "win_change": "win rate"}
PREDICTORS = {"predicted": "Σ η·G", "predicted_adamw": "AdamW's"}


def block(tables: Path) -> str:
    """The numbers as Markdown, from the tables `validation_*.csv` of a folder."""
    effects, agreement, scores = (_read(tables, name) for name in ("effects", "agreement", "scores"))
    return "\n".join([BEGIN, "", *_scores(scores), *_agreement(agreement), *_effects(effects), END])


def _read(tables: Path, name: str) -> pd.DataFrame:
    path = tables / f"validation_{name}.csv"
    if not path.is_file():
        raise InputError(f"{path} does not exist; run `make validate`")
    return pd.read_csv(path)


def _scores(scores: pd.DataFrame) -> list[str]:
    lines = [
        f"Trainings on halves: {_count(scores['n'])}; responses of D′: {_count(scores['n_responses'])}.",
        "",
        "| score of a pair | ρ (LDS) | 95 % over trainings | 95 % over responses of D′ |",
        "|---|---:|---|---|",
    ]
    for row in scores.to_dict("records"):
        over_trainings, over_responses = (row["low"], row["high"]), (row["low_responses"], row["high_responses"])
        intervals = " | ".join(_interval(*interval) for interval in (over_trainings, over_responses))
        lines.append(f"| {SCORES[row['score']]} | {row['rho']:.2f} | {intervals} |")
    return [*lines, ""]


def _agreement(agreement: pd.DataFrame) -> list[str]:
    lines = [
        "Components left out, all comparisons of a run together; signs are of outcomes whose own interval excludes 0:",
        "",
        "| run | outcome | predicted by | ρ (95 %) | signs right | slope (95 %) |",
        "|---|---|---|---|---|---|",
    ]
    for row in agreement.to_dict("records"):
        rho = f"{row['rho']:.2f} ({_interval(row['low'], row['high'])})"
        resolved = int(row["n_resolved"])
        signs = f"{round(row['signs'] * resolved)} of {resolved}" if resolved else "none resolved"
        named = f"{OUTCOMES[row['outcome']]} | {PREDICTORS[row['predictor']]}"
        lines.append(f"| {row['run']} | {named} | {rho} | {signs} | {_slope(row)} |")
    return [*lines, ""]


def _slope(row: Mapping[Hashable, Any]) -> str:
    """Where 1 is what is expected: of the NLL on AdamW's prediction, which is in nats."""
    if (row["outcome"], row["predictor"]) != ("change", "predicted_adamw"):
        return ""
    return f"{row['slope']:.2f} ({_interval(row['slope_low'], row['slope_high'])})"


def _effects(effects: pd.DataFrame) -> list[str]:
    lines = [
        f"By component; means over seeds ({_count(effects['seed'])}), the smallest and the largest in brackets:",
        "",
        "| run | interval | without | NLL of D′, nats | AdamW's prediction | Σ η·G | win rate, points |",
        "|---|---|---|---|---|---|---|",
    ]
    for keys, rows in effects.groupby(["run", "step", "next_step", "component"], sort=False):
        run, step, next_step, component = keys
        cells = [_spread(rows[name], 3) for name in ("change", "predicted_adamw", "predicted")]
        cells.append(_spread(rows["win_change"], 1))
        lines.append(f"| {run} | {step} to {next_step} | {component} | {' | '.join(cells)} |")
    return [*lines, ""]


def _spread(values: pd.Series, digits: int) -> str:
    if values.isna().any():
        return ""
    several = f" [{values.min():+.{digits}f}, {values.max():+.{digits}f}]" if len(values) > 1 else ""
    return f"{values.mean():+.{digits}f}{several}"


def _interval(low: float, high: float) -> str:
    return "too few for an interval" if math.isnan(low) else f"{low:.2f} to {high:.2f}"


def _count(values: pd.Series) -> str:
    return ", ".join(str(int(value)) for value in sorted(set(values)))


def rewrite(page: Path, numbers: str) -> None:
    """Replaces what stands between the marks of a page.

    Raises:
        InputError: a page without the marks.
    """
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise InputError(f"{page} needs one line {BEGIN!r} and one line {END!r} after it")
    before, rest = text.split(BEGIN)
    with atomic_file(page) as temporary:
        temporary.write_text(before + numbers + rest.split(END)[1], encoding="utf-8")


def main() -> None:
    """Entry of the command line."""
    if len(sys.argv) != 3:
        sys.exit("usage: python -m po_dynamics.validation results/<experiment> page.md")
    try:
        rewrite(Path(sys.argv[2]), block(Path(sys.argv[1]) / "tables"))
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

"""`python -m po_dynamics.evaluation.reliability`: what judged pairs are worth, from files in alpaca-eval's format."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from po_dynamics.errors import InputError
from po_dynamics.evaluation import stats
from po_dynamics.evaluation.reliability.agreement import judges_agree
from po_dynamics.evaluation.reliability.correction import corrected
from po_dynamics.evaluation.reliability.judgements import labels_of, read_judgements
from po_dynamics.evaluation.reliability.length_control import length_controlled
from po_dynamics.evaluation.reliability.report_card import report_card
from po_dynamics.storage import layout


def win_rate(annotations: Sequence[Path], labels: Sequence[Path] = ()) -> pd.DataFrame:
    """Win rates of `output_2` over `output_1`, per cent: raw, length-controlled and, with labels, corrected by them.

    Returns:
        `rate, value, low, high, n, note`. The raw one is alpaca-eval's `win_rate`, over pairs that have a verdict.
    """
    table = read_judgements(annotations)
    outcomes = table["preference"].to_numpy()
    given = int(np.sum(~np.isnan(outcomes)))
    if not given:
        raise InputError(f"{annotations[0]}: none of {len(table)} pairs has a verdict")
    low, high = stats.interval(outcomes[:, None])[:, 0]
    missing = len(table) - given
    rows = [("raw", float(np.nanmean(outcomes)), low, high, given, f"{missing} without a verdict" if missing else "")]
    differences = (table["output_2"].str.len() - table["output_1"].str.len()).to_numpy()
    found = length_controlled(outcomes, differences)
    rows.append(("length-controlled", *found[:3], given, _note(found.rate, found.extrapolates)))
    if labels:
        better = corrected(outcomes, labels_of(table, read_judgements(labels)))
        note = f"{better.n_labels} labels, weight of the judge {better.weight:.2f}"
        rows.append(("corrected", *better[:3], given, note))
    shown = pd.DataFrame(rows, columns=["rate", "value", "low", "high", "n", "note"])
    shown[["value", "low", "high"]] *= 100
    return shown


def _note(rate: float, extrapolates: bool) -> str:
    if math.isnan(rate):
        return "no fit: length alone separates wins from losses"
    return "extrapolates: too few wins or losses, or no answer of the baseline's length" if extrapolates else ""


def outcomes_of(results: Path) -> pd.DataFrame:
    """`stats.load_outcomes` of a results folder, wherever it lies."""
    found = layout.find(layout.EVALUATION + layout.ANNOTATIONS, results)
    found += layout.find(layout.STAGE_EVALUATION + layout.ANNOTATIONS, results)
    evaluations = []
    for keys, path in found:
        run = {"model": keys["model"], "run": keys.get("run") or keys["stage"], "seed": int(keys.get("seed", 0))}
        baseline = results / keys["model"] / "evaluation" / "sft" / layout.RESPONSES[1:]
        responses = path.with_name(layout.RESPONSES[1:])
        evaluations.append({**run, "annotations": path, "responses": responses, "baseline": baseline})
    return stats.load_outcomes(evaluations)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table that is asked for."""
    asked = _parser().parse_args(arguments)
    try:
        if asked.command == "rate":
            table = win_rate(asked.annotations, asked.labels)
        elif asked.command == "card":
            table = report_card(read_judgements(asked.annotations), read_judgements(asked.labels))
        else:
            ours, theirs = (outcomes_of(folder) for folder in asked.results)
            table = judges_agree(ours, theirs)
    except InputError as error:
        sys.exit(f"error: {error}")
    print(table.to_string(index=False, float_format="%.4g"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m po_dynamics.evaluation.reliability", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    rate = commands.add_parser("rate", help="win rates: raw, length-controlled, corrected by true labels")
    card = commands.add_parser("card", help="a judge's report card against labels, of people for instance")
    for command, needed in ((rate, False), (card, True)):
        command.add_argument("annotations", type=Path, nargs="+", help="judged pairs, JSON as alpaca-eval writes it")
        command.add_argument(
            "--labels", type=Path, nargs="+", required=needed, default=(), help="true labels, same format"
        )
    agree = commands.add_parser("agreement", help="of the judges of two results folders of one experiment")
    agree.add_argument("results", type=Path, nargs=2, metavar="RESULTS", help="results/<experiment>")
    return parser


if __name__ == "__main__":
    main()

"""What the report says about "Why do both fall?": sentences that depend on the numbers, and the table behind them."""

from __future__ import annotations

from typing import Any

import pandas as pd

from po_dynamics.figures.captions import paragraphs, plural
from po_dynamics.figures.labels import run_labels
from po_dynamics.objectives.families import Runs

_OUTCOME = {"chosen": "fell", "rejected": "rose"}
_OTHERWISE = {"chosen": "did not fall", "rejected": "did not rise"}
_HOLDS = {"chosen": "lowers_chosen", "rejected": "raises_rejected"}


def explained(displacement: pd.DataFrame, check: pd.DataFrame, runs: Runs) -> list[dict[str, Any]]:
    """`model, label, text, rows` of every probed offline run: a paragraph, and its rows of `check`.

    Args:
        displacement, check: of the module `dynamics.observables.displacement`; towards the held-out final responses.
        runs: what each run optimises.
    """
    found = []
    shown = displacement[displacement["final_set"] == "heldout"]
    checked = check[check["final_set"] == "heldout"]
    for (model, run), table in shown.groupby(["model", "run"], sort=False):
        rows = checked[(checked["model"] == model) & (checked["run"] == run)].to_dict("records")
        texts = [_log_probs(table), _condition(table), *map(_check, rows), _cause(rows), _unit(table)]
        label = run_labels([str(run)], runs, with_objective=True)[str(run)]
        text = paragraphs(" ".join(texts))
        found.append({"model": model, "label": label, "text": text, "rows": [_in_percent(row) for row in rows]})
    return found


def _log_probs(table: pd.DataFrame) -> str:
    """Who fell and who rose since the first checkpoint, as far as it is known."""
    first, last = table["step"].min(), table["step"].max()
    ends = {kind: _end(table, f"{kind}_per_response") for kind in ("chosen", "rejected", "greedy")}
    names = ("the chosen responses", "the rejected ones", "the answers that the run ends with")
    parts = [f"of {name} {_moved(end)}" for name, end in zip(names, ends.values(), strict=True)]
    said = f"From step {first:,} to step {last:,}, log π {parts[0]} per response, that {parts[1]} and that {parts[2]}."
    verbs = {kind: _verb(end) for kind, end in ends.items()}
    if verbs["chosen"] == verbs["rejected"] == "fell":
        return f"{said} So both fall."
    unknown = [f"the {kind}" for kind in ("chosen", "rejected") if verbs[kind] == "changed"]
    if unknown:
        return f"{said} Whether {' and '.join(unknown)} fall is not known."
    return f"{said} So the chosen {verbs['chosen']} and the rejected {verbs['rejected']}: not both fall."


def _end(table: pd.DataFrame, quantity: str) -> tuple[float, float, float]:
    """Mean over seeds at the last checkpoint, the lowest and the highest bound of their intervals."""
    rows = table[(table["quantity"] == quantity) & (table["step"] == table["step"].max())]
    return rows["value"].mean(), rows["low"].min(), rows["high"].max()


def _verb(end: tuple[float, float, float]) -> str:
    _, low, high = end
    return "fell" if high < 0 else "rose" if low > 0 else "changed"


def _moved(end: tuple[float, float, float]) -> str:
    value, low, high = end
    verb, bounds = _verb(end), f"{_signed(low)} to {_signed(high)}"
    if verb == "changed":
        return f"changed by {_signed(value)} nats ({bounds}: sign not known)"
    return f"{verb} by {abs(value):.2f} nats ({bounds})"


def _condition(table: pd.DataFrame) -> str:
    """How often the step on a mini-batch alone would move its own responses the wrong way."""
    moves = {"lower its own chosen responses": _HOLDS["chosen"], "raise its own rejected ones": _HOLDS["rejected"]}
    parts = [f"{move} in {_range(table[table['quantity'] == quantity])}" for move, quantity in moves.items()]
    return f"A step of plain gradient descent on a mini-batch alone would, to first order, {' and '.join(parts)}."


def _range(share: pd.DataFrame) -> str:
    """The lowest and the highest share of a checkpoint and seed, and the ends of their intervals."""
    if share.empty:
        return "a share that is not known (not measured, or nothing that the loss pushes that way)"
    low, high = _percent(share["value"].min()), _percent(share["value"].max())
    bounds = f"Wilson intervals from {_percent(share['low'].min())} to {_percent(share['high'].max())}"
    value = low if low == high else f"{low} to {high}"
    return f"{value} % of the {share['n'].max():,} mini-batches of a checkpoint ({bounds} %)"


def _check(row: dict[Any, Any]) -> str:
    """Whether the condition says what then happened to the role, and whether its ratio says to which mini-batches."""
    role, n = row["role"], row["n"]
    held, did = row["held_and_did"] + row["held_only"], row["held_and_did"] + row["did_only"]
    if held not in (0, n):
        return f"The condition for the {role} {_guess(row, did)} {_order(row)}"
    text = f"The condition for the {role} {'always' if held else 'never'} held, and by the next checkpoint they"
    text = f"{text} {_OUTCOME[role]} in {_percent(did / n)} % of {n:,} cases"
    return f"{text}. {_order(row)}"


def _cause(rows: list[dict[Any, Any]]) -> str:
    """What did it where no condition ever held; empty where one did, or nothing happened."""
    if not any(row["did_only"] for row in rows) or any(row["held_and_did"] + row["held_only"] for row in rows):
        return ""
    return """A plain step on the same pairs, as measured at the checkpoints, does neither: steps on other pairs,
        AdamW's scaling or what first order leaves out must have."""


def _guess(row: dict[Any, Any], did: int) -> str:
    """Share right against the base rate."""
    outcome = _OUTCOME[row["role"]]
    commoner = outcome if did > row["n"] / 2 else _OTHERWISE[row["role"]]
    said = f"""says rightly in {_percent(row["share_right"])} % of {row["n"]:,} cases whether they {outcome} by the next
        checkpoint; always saying “{commoner}” is right in {_percent(row["base_rate"])} %."""
    bounds = f"{_signed(100 * row['gain_low'], 1)} to {_signed(100 * row['gain_high'], 1)} points"
    if row["gain_low"] > 0:
        return f"{said} It predicts better than that ({bounds})."
    if row["gain_high"] < 0:
        return f"{said} It predicts worse than that ({bounds})."
    return f"{said} Whether it predicts better than that is not known ({bounds})."


def _order(row: dict[Any, Any]) -> str:
    """Whether the ratio orders the mini-batches of a checkpoint by what happened; empty where all fared alike."""
    if pd.isna(row["order"]) or pd.isna(row["order_low"]):
        return ""
    ratio, outcome = {"chosen": "‖g⁺‖²", "rejected": "‖g⁻‖²"}[row["role"]], _OUTCOME[row["role"]]
    said = f"""Among mini-batches of one checkpoint, those whose {row["role"]} {outcome} have a larger ratio
        ⟨g⁺, g⁻⟩ / {ratio} than those whose did not in {_percent(row["order"])} % of comparisons
        ({_percent(row["order_low"])} to {_percent(row["order_high"])} %):"""
    if row["order_low"] > 0.5:
        return f"{said} the ratio says something about which {outcome}."
    if row["order_high"] < 0.5:
        return f"{said} the ratio points the wrong way."
    return f"{said} whether the ratio says which {outcome} is not known."


def _unit(table: pd.DataFrame) -> str:
    seeds = table["seed"].nunique()
    few = ", too few to say what another would show" if seeds < 3 else ""
    return f"Intervals are of 95 %, over mini-batches and not over trainings ({plural(seeds, 'seed')}{few})."


def _in_percent(row: dict[Any, Any]) -> dict[Any, Any]:
    """Shares in per cent, as the table shows them; None where there is no value."""
    shares = [name for name in row if name in ("share_right", "base_rate") or name.startswith(("gain", "order"))]
    return row | {name: None if pd.isna(row[name]) else 100 * row[name] for name in shares}


def _percent(share: float) -> str:
    return f"{100 * share:.0f}"


def _signed(value: float, digits: int = 2) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")

"""Readable names of runs: what an objective is called, and what a variant of it does. No matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from po_dynamics.objectives.families import Runs


class Name(NamedTuple):
    """What an objective is called; `change` is what a run does, with its parameters, if the title does not say it.

    "~" is a space at which a label is not broken.
    """

    title: str
    change: str = ""


# An objective that is not here is called what the configuration calls it, with its parameters.
NAMES = {
    "base": Name("base model, no SFT"),
    "dpo": Name("DPO"),
    "cdpo": Name("cDPO", "POS~→~NEG, steps~{t1}–{t2}"),
    "dpo_no_neg": Name("DPO", "no NEG before step~{before}"),
    "dpo_no_pos": Name("DPO", "no POS after step~{after}"),
    "dpo_switch": Name("DPO", "POS~→~NEG at step~{at}"),
    "ipo": Name("IPO"),
    "simpo": Name("SimPO"),
    "cpo": Name("CPO"),
    "kto": Name("KTO"),
    "ra": Name("RA, plain"),
    "ra_posterior": Name("RA"),
    "rda": Name("RDA, plain"),
    "rda_posterior": Name("RDA"),
    "pra": Name("PRA, plain"),
    "pra_posterior": Name("PRA"),
    "ppo": Name("PPO"),
    "cppo_top": Name("cPPO-top", "TOP~×~{lambda}"),
    "cppo_mid": Name("cPPO-mid", "MID~×~{lambda}"),
    "ppo_no_top": Name("PPO", "no~TOP"),
    "ppo_no_mid": Name("PPO", "no~MID"),
    "hppo": Name("hPPO", "t₃~=~{t3}, τ~=~{tau}"),
    "ppo_clip_higher": Name("PPO, clip-higher"),
    "grpo": Name("GRPO"),
}
_SYMBOLS = {"beta": "β", "lambda": "λ", "tau": "τ", "epsilon": "ε", "gamma": "γ", "alpha": "α", "t1": "t₁", "t2": "t₂"}


def title_of(objective: str) -> str:
    """What an objective is called, without its parameters."""
    return NAMES[objective].title if objective in NAMES else objective


def run_labels(names: Sequence[str], runs: Runs, with_objective: bool = False) -> dict[str, str]:
    """Names by run: what each does, by objective and parameters; runs that would read alike are told apart.

    Args:
        with_objective: put the objective's title before what a variant does.
    """
    plain = {name: _label(runs.get(name, {"objective": name}), with_objective) for name in names}
    labels = dict(plain)
    for name, label in plain.items():
        if list(plain.values()).count(label) > 1:
            labels[name] = f"{label} ({_parameters(runs.get(name, {})) or name})"
    unique = len(set(labels.values())) == len(labels)
    return labels if unique else {name: f"{label} ({name})" for name, label in plain.items()}


def _label(run: Mapping[str, Any], with_objective: bool) -> str:
    objective = str(run["objective"])
    if objective not in NAMES:
        parameters = _parameters(run)
        return f"{objective}: {parameters}" if parameters else objective
    title, change = NAMES[objective]
    try:
        change = change.format(**run.get("parameters", {})).replace("~", "\N{NO-BREAK SPACE}")
    except KeyError:  # a parameter is at its default
        return title
    return f"{title}: {change}" if change and with_objective else change or title


def _parameters(run: Mapping[str, Any]) -> str:
    parameters = run.get("parameters", {})
    return ", ".join(f"{_SYMBOLS.get(key, key)} = {value}" for key, value in parameters.items())

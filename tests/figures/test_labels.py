"""Names of runs."""

import subprocess
import sys

import synthetic
from po_dynamics.figures.labels import NAMES, run_labels, title_of
from po_dynamics.objectives.registry import OBJECTIVES

RUNS = synthetic.RUNS


def test_run_labels_are_unique_and_say_what_a_run_does():
    labels = run_labels(list(RUNS), RUNS, with_objective=True)
    assert len(set(labels.values())) == len(RUNS)
    assert labels["cppo_top_lambda-0.3"].replace("\xa0", " ") == "cPPO-top: TOP × 0.3"
    twins = {
        name: {"objective": "dpo", "family": "offline", "parameters": {"beta": b}}
        for name, b in (("a", 0.1), ("b", 0.5))
    }
    assert run_labels(["a", "b"], twins) == {"a": "DPO (β = 0.1)", "b": "DPO (β = 0.5)"}
    twins["b"]["parameters"]["beta"] = 0.1
    assert run_labels(["a", "b"], twins) == {"a": "DPO (a)", "b": "DPO (b)"}


def test_an_objective_that_has_no_name_here_is_called_by_its_own_with_its_parameters():
    runs = {
        "plain": {"objective": "mine", "family": "online", "parameters": {}},
        "a": {"objective": "mine", "family": "online", "parameters": {"lambda": 0.3, "my_own": 2}},
        "b": {"objective": "mine", "family": "online", "parameters": {"lambda": 0.3, "my_own": 2}},
    }
    assert title_of("mine") == "mine"
    assert run_labels(["plain", "a"], runs) == {"plain": "mine", "a": "mine: λ = 0.3, my_own = 2"}
    assert len(set(run_labels(["a", "b"], runs).values())) == 2


def test_every_name_is_of_an_objective_and_uses_its_parameters():
    assert set(NAMES) - {"base"} <= set(OBJECTIVES)
    parameters = {name: dict.fromkeys(objective.parameters, 1) for name, objective in OBJECTIVES.items()}
    for name in set(NAMES) - {"base"}:
        NAMES[name].change.format(**parameters[name])  # a KeyError names a parameter that the objective does not have


def test_naming_a_run_needs_no_drawing_library():
    heavy = "{'matplotlib', 'seaborn', 'pandas', 'numpy'}"
    code = (
        f"import sys, po_dynamics.figures.labels, po_dynamics.figures.registry; assert not {heavy} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

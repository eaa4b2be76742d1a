"""Patterns build paths and read them back."""

import pytest
from po_dynamics.errors import InputError
from po_dynamics.storage import layout

VALUES = {"experiment": "demo", "model": "pythia-2.8b", "run": "cdpo_t1-75", "seed": "3", "final_set": "heldout"}
VALUES |= {
    "data_set": "eval_prompts",
    "step": "10",
    "chunk": "0",
    "stage": "sft",
    "init": "sft",
    "figure": "components",
}
PATTERNS = [value for name, value in vars(layout).items() if name.isupper() and value.startswith("results/")]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_parsing_undoes_building(pattern):
    path = pattern.format(**VALUES)
    assert layout.parse(path, pattern) == {k: v for k, v in VALUES.items() if f"{{{k}}}" in pattern}


def test_the_pattern_that_fits_is_taken():
    evaluations = layout.EVALUATION, layout.STAGE_EVALUATION
    assert layout.parse("results/demo/m/evaluation/base", *evaluations)["stage"] == "base"
    assert layout.parse("results/demo/m/dpo/seed1/evaluation/2", *evaluations)["seed"] == "1"


@pytest.mark.parametrize("path", ["demo/data", "results/demo/datum", "results/a/b/data", "results/demo/data/x"])
def test_another_path_is_refused(path):
    with pytest.raises(InputError, match=r"is not of the form results/\{experiment\}/data"):
        layout.parse(path, layout.DATA)


def test_found_wherever_the_experiment_lies(tmp_path):
    for run in ("ppo", "dpo"):
        (tmp_path / f"m/{run}/seed0/checkpoints").mkdir(parents=True)
    (tmp_path / "m/dpo/seed0/probe").mkdir()
    found = layout.find(layout.CHECKPOINTS, tmp_path)
    assert [about["run"] for about, _ in found] == ["dpo", "ppo"]
    assert found[0][1] == tmp_path / "m/dpo/seed0/checkpoints"

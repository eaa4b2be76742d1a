"""The table of docs/architecture.md is what dry runs plan: each of its edits is made in a finished tree, and undone.

The tree is a copy of the workflow with one empty file or folder for every output of the smoke configuration, which
Snakemake is told to take for its own (`--touch`): nothing is computed.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from checkout import ROOT, clone, edit, plan, snakemake
from documents import python_of

pytestmark = pytest.mark.e2e

PACKAGE = Path("workflow/po_dynamics")
CONFIGURATION = Path("config/smoke.yaml")


def appended(file: Path, text: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        with (root / file).open("a") as stream:
            stream.write(text)

    return change


def statement(file: str) -> Callable[[Path], None]:
    return appended(PACKAGE / file, "\n_REVISION = 2\n")


def replaced(file: Path, old: str, new: str) -> Callable[[Path], None]:
    return lambda root: edit(root / file, old, new)


DPO = "  dpo: {objective: dpo, probe: true, parameters: {beta: 0.1}}\n"
# The edits by the beginning of their row in the table.
EDITS = {
    "the harness": statement("harness/job.py"),
    "where files lie": appended(PACKAGE / "storage/layout.py", '\nMINE = RUN + "/mine"\n'),
    "a new objective": appended(PACKAGE / "objectives/pairs.py", python_of("extending.md", "An objective")[0]),
    "one objective": replaced(PACKAGE / "objectives/pairs.py", "ramp(step, t1, t2)", "ramp(step + 1, t1, t2)"),
    "PPO's update": statement("ppo/update.py"),
    "the gold reward": statement("world/gold.py"),
    "the exact bandit": statement("bandit/gradients.py"),
    "the filter and tokenisation": statement("data/tokens/tokenising.py"),
    "counts of the data": statement("data/statistics.py"),
    "samples for the distance": statement("evaluation/target.py"),
    "rewards of pairs": statement("training/preference_rewards.py"),
    "hub conversion": statement("models/hub.py"),
    "a new figure": replaced(
        PACKAGE / "figures/registry.py",
        "FIGURES = (",
        'FIGURES = (\n    Figure("weights_{run}", "training:draw_training", of_seeds=("training.csv",)),',
    ),
    "figure style": statement("figures/style.py"),
    "statistics": statement("evaluation/stats.py"),
    "the client of remote judges": statement("judging/client.py"),
    "another judge": replaced(CONFIGURATION, "judge: gold", "judge: openai"),
    "what a judge may cost": replaced(CONFIGURATION, "judge: gold", "judge: gold, judging: {max_requests: 9}"),
    "a configuration default that is not used": replaced(
        PACKAGE / "settings/online.py", "kl_coefficient: NonNegative = 0.05", "kl_coefficient: NonNegative = 0.06"
    ),
    "a configuration default that is used": replaced(
        PACKAGE / "settings/online.py", "value_clip: Rate | None = 0.2", "value_clip: Rate | None = 0.3"
    ),
    "a probed run that is removed": replaced(CONFIGURATION, DPO, ""),
    "the number of devices": replaced(
        CONFIGURATION, "  menagerie:\n", "  menagerie:\n    resources: {sft: {gpu: 0}}\n"
    ),
}


def table() -> dict[str, str]:
    """The rows of the document: what is edited, and the rules."""
    text = (ROOT / "docs/architecture.md").read_text().partition("rules planned again")[2].partition("\n\n")[0]
    return dict(re.findall(r"^\| (?!edit|-)(.+?) \| (.+) \|$", text, flags=re.MULTILINE))


@pytest.fixture(scope="module")
def rules(tmp_path_factory) -> set[str]:
    """Every rule that the smoke configuration runs."""
    return set(plan(clone(tmp_path_factory.mktemp("staleness") / "empty")))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    root = clone(tmp_path_factory.mktemp("staleness") / "finished")
    planned = snakemake(root, "--dry-run").stdout
    for output in re.findall(r"^    output: (.*)$", planned, flags=re.MULTILINE):
        for path in (root / name for name in output.split(", ")):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch() if path.suffix else path.mkdir(exist_ok=True)
    touched = snakemake(root, "--touch", "--forceall")
    assert touched.returncode == 0, touched.stderr
    return root


@contextlib.contextmanager
def edited(root: Path, change: Callable[[Path], None], kept: Path) -> Iterator[None]:
    """The tree with a change, which is taken back."""
    shutil.copytree(root / "workflow", kept / "workflow")
    shutil.copytree(root / "config", kept / "config")
    try:
        change(root)
        yield
    finally:
        for name in ("workflow", "config"):
            shutil.rmtree(root / name)
            shutil.copytree(kept / name, root / name)


def test_a_run_that_reads_rewards_reruns_no_other(finished, tmp_path):
    with edited(
        finished,
        replaced(CONFIGURATION, "  rda: {", "  rda_too: {objective: rda, parameters: {beta: 1}}\n  rda: {"),
        tmp_path,
    ):
        added = plan(finished)
    assert (added["train_offline"], added["respond_run"]) == (1, 1)
    assert "score_preferences" not in added
    assert "probe_offline" not in added
    with edited(finished, EDITS["rewards of pairs"], tmp_path / "again"):
        assert plan(finished)["train_offline"] == 2  # rda and pra, not dpo and cdpo


def test_every_row_has_its_edit():
    assert len(table()) == len(EDITS)
    assert all(sum(row.startswith(name) for row in table()) == 1 for name in EDITS)


def test_a_finished_tree_has_nothing_to_do(finished):
    assert plan(finished) == {}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_plans_the_rules_of_its_row(name, finished, rules, tmp_path):
    (row,) = (cells for what, cells in table().items() if what.startswith(name))
    named = set(re.findall(r"`(\w+)`", row))
    expected = rules - named if row.startswith("every rule but") else named
    with edited(finished, EDITS[name], tmp_path):
        assert set(plan(finished)) == expected

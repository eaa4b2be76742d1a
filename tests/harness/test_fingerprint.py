"""The fingerprint of a script follows its imports by content, through folders, and is loud where it cannot."""

from pathlib import Path

import pytest
from po_dynamics.errors import InputError
from po_dynamics.harness import fingerprint as module
from po_dynamics.harness.fingerprint import fingerprint, module_fingerprint, objective_fingerprint
from po_dynamics.objectives.registry import OBJECTIVES

PAIRS = """
from po_dynamics.objectives.declaration import offline
from po_dynamics.objectives.schedules import ramp
SCALE = 2
class Pairs:
    size = SCALE
def _sigmoid(x): return x
@offline
def dpo(pairs, step): return _sigmoid(pairs)
@offline
def cdpo(pairs, step): return dpo(pairs, step) * ramp(step)
@offline
def ipo(pairs, step): return pairs
"""
FILES = {
    "__init__.py": "",
    "a.py": "from po_dynamics import b\nfrom po_dynamics.deep import e\ndef f():\n    '''Doc.'''\n    return b.x\n",
    "b.py": "x = 1\n",
    "c.py": "y = 1\n",
    "d.py": "def hook(): pass\n",
    "harness/__init__.py": "",
    "harness/job.py": "from po_dynamics import c\n",
    "types.py": "T = int\n",
    "deep/__init__.py": "",
    "deep/e.py": "from .deeper.f import z\nfrom ..g import w\n",
    "deep/deeper/__init__.py": "",
    "deep/deeper/f.py": "z = 1\n",
    "g.py": "w = 1\n",
    "objectives/__init__.py": "",
    "objectives/registry.py": "from po_dynamics.objectives import pairs\ndef bind(name): return pairs\n",
    "objectives/declaration.py": "def offline(f): return f\n",
    "objectives/schedules.py": "def ramp(step): return step\n",
    "objectives/pairs.py": PAIRS,
    "user.py": "from po_dynamics.objectives.pairs import Pairs\nfrom po_dynamics.objectives.registry import bind\n",
}
SCRIPT = """
from typing import TYPE_CHECKING
from po_dynamics.harness.job import stage
if TYPE_CHECKING:
    from po_dynamics.types import T
def main():
    from po_dynamics.a import f
    return 'po_dynamics.d:hook'
"""


@pytest.fixture
def package(tmp_path):
    package = tmp_path / "po_dynamics"
    for name, text in FILES.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    return script, package


def value(script: Path, package: Path) -> str:
    forget()
    return fingerprint(script, package=package)


def forget() -> None:
    for cached in (module._uses, module._mentions, module._tree, module._content):
        cached.cache_clear()


def edit(file: Path, old: str, new: str) -> None:
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


@pytest.mark.parametrize("name", ["a.py", "b.py", "d.py", "deep/e.py", "deep/deeper/f.py", "g.py"])
def test_changes_with_every_module_it_reaches(package, name):
    before = value(*package)
    with (package[1] / name).open("a") as file:
        file.write("\nz = 3\n")
    assert value(*package) != before


@pytest.mark.parametrize("name", ["harness/job.py", "c.py", "types.py"])
def test_the_harness_what_it_imports_and_imports_for_types_do_not_count(package, name):
    before = value(*package)
    (package[1] / name).write_text("y = 2\n")
    assert value(*package) == before


def test_comments_docstrings_and_layout_do_not_count(package):
    before = value(*package)
    text = "# new\nfrom po_dynamics import b\nfrom po_dynamics.deep import e\n\n\ndef f():\n    return (b.x)\n"
    (package[1] / "a.py").write_text(text)
    assert value(*package) == before


@pytest.mark.parametrize(
    "line",
    [
        "import po_dynamics.missing",
        "from po_dynamics import missing",
        "from po_dynamics.deep import missing",
        "from po_dynamics.deep.missing import f",
        "from po_dynamics.b.missing import f",
        "from .missing import f",
        "hook = 'po_dynamics.missing:hook'",
    ],
)
def test_an_import_that_leads_nowhere_is_refused(package, line):
    with (package[1] / "b.py").open("a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(InputError, match=r"b\.py: the import of po_dynamics\S*missing\S* leads to no module"):
        value(*package)


def hashes(package: Path) -> dict[str, str]:
    forget()
    names = {name: objective_fingerprint(name, package) for name in ("dpo", "cdpo", "ipo")}
    return names | {"user": fingerprint(package / "user.py", package=package)}


@pytest.mark.parametrize(
    ("file", "old", "new", "changed"),
    [
        ("pairs.py", "return pairs\n", "return -pairs\n", {"ipo"}),
        ("pairs.py", "_sigmoid(pairs)", "_sigmoid(-pairs)", {"dpo", "cdpo"}),
        ("pairs.py", "return x", "return x + 1", {"dpo", "cdpo"}),
        ("pairs.py", "SCALE = 2", "SCALE = 3", {"user"}),
        ("schedules.py", "return step", "return step + 1", {"cdpo"}),
        ("registry.py", "return pairs", "return pairs.dpo", set()),
        ("declaration.py", "return f", "return (f)(1)", set()),
        ("pairs.py", "def ipo", "def mine(pairs, step): return 1\n@offline\ndef ipo", set()),
    ],
)
def test_of_objectives_each_definition_counts_for_those_who_use_it(package, file, old, new, changed):
    before = hashes(package[1])
    edit(package[1] / "objectives" / file, old, new)
    after = hashes(package[1])
    assert {name for name in before if before[name] != after[name]} == changed


def test_a_module_of_objectives_is_not_imported_as_a_whole(package):
    (package[1] / "user.py").write_text("from po_dynamics.objectives import pairs\n")
    with pytest.raises(InputError, match=r"user\.py: of po_dynamics\.objectives\.pairs, import definitions by name"):
        hashes(package[1])


def test_an_objective_that_nobody_declares_is_refused(package):
    with pytest.raises(InputError, match=r"declares the objective '_sigmoid'"):
        objective_fingerprint("_sigmoid", package[1])


def test_a_module_that_a_configuration_names(package):
    before = module_fingerprint("po_dynamics.user", package[1])
    edit(package[1] / "objectives" / "pairs.py", "SCALE = 2", "SCALE = 3")
    forget()
    assert module_fingerprint("po_dynamics.user", package[1]) not in (before, "")
    assert module_fingerprint("somebody.else", package[1]) == ""


def test_every_script_of_the_workflow_has_a_fingerprint():
    scripts = sorted((module.PACKAGE.parent / "scripts").glob("*.py"))
    assert len({fingerprint(script) for script in scripts}) == len(scripts) > 15


def test_every_objective_has_a_fingerprint_of_its_own():
    assert len({objective_fingerprint(name) for name in OBJECTIVES}) == len(OBJECTIVES)

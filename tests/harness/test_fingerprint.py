"""The fingerprint of a script follows its imports by content, through folders, and is loud where it cannot."""

from pathlib import Path

import pytest
from po_dynamics.errors import InputError
from po_dynamics.harness import fingerprint as module
from po_dynamics.harness.fingerprint import fingerprint

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
    for cached in (module._imports, module._tree, module._content):
        cached.cache_clear()
    return fingerprint(script, package)


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


def test_every_script_of_the_workflow_has_a_fingerprint():
    scripts = sorted((module.PACKAGE.parent / "scripts").glob("*.py"))
    assert len({fingerprint(script) for script in scripts}) == len(scripts) > 20

"""The fingerprint of a script follows its imports by content."""

from pathlib import Path

import pytest
from po_dynamics import fingerprint as module
from po_dynamics.fingerprint import fingerprint


@pytest.fixture
def package(tmp_path):
    package = tmp_path / "po_dynamics"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from po_dynamics import b\n\ndef f():\n    '''Doc.'''\n    return b.x  # why\n")
    (package / "b.py").write_text("x = 1\n")
    (package / "c.py").write_text("y = 1\n")
    (package / "d.py").write_text("def hook(): pass\n")
    script = tmp_path / "script.py"
    script.write_text("def main():\n    from po_dynamics.a import f\n    f()\n    return 'po_dynamics.d:hook'\n")
    return script, package


def value(script: Path, package: Path) -> str:
    for cached in (module._imports, module._tree, module._content):
        cached.cache_clear()
    return fingerprint(script, package)


@pytest.mark.parametrize("name", ["a", "b", "d"])
def test_changes_with_every_module_it_reaches(package, name):
    before = value(*package)
    with (package[1] / f"{name}.py").open("a") as file:
        file.write("\nz = 3\n")
    assert value(*package) != before


def test_ignores_modules_it_does_not_reach_comments_docstrings_and_layout(package):
    before = value(*package)
    (package[1] / "c.py").write_text("y = 2\n")
    (package[1] / "a.py").write_text("# new\nfrom po_dynamics import b\n\n\ndef f():\n    return (b.x)\n")
    assert value(*package) == before

"""Content hash of a script and of every module of this package that it imports, transitively.

Snakemake compares a `script:` by modification time and does not see imported modules. This hash is of the syntax tree
without docstrings, so that comments, formatting, `touch` and `git clone` change nothing, and an edit of `ppo.py`
changes exactly the stages that import it. Nothing is imported to compute it.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path

PACKAGE = Path(__file__).parent
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def fingerprint(script: Path | str, package: Path = PACKAGE) -> str:
    """Sixteen hexadecimal digits that change when the code that `script` runs changes."""
    digest = hashlib.sha256()
    for file in sorted(_reachable(Path(script), package)):
        digest.update(f"{file.name}\0{_content(file)}\0".encode())
    return digest.hexdigest()[:16]


def _reachable(script: Path, package: Path) -> set[Path]:
    seen: set[Path] = set()
    stack = [script]
    while stack:
        file = stack.pop()
        if file not in seen:
            seen.add(file)
            stack.extend(_imports(file, package))
    return seen


@functools.cache
def _imports(file: Path, package: Path) -> tuple[Path, ...]:
    """Modules of the package that `file` imports anywhere, inside functions and by a dotted string included."""
    names: set[str] = set()
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value.partition(":")[0])
    prefix = package.name + "."
    files = (package / f"{name.removeprefix(prefix).split('.')[0]}.py" for name in names if name.startswith(prefix))
    return tuple(sorted({path for path in files if path.exists()}))


@functools.cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


@functools.cache
def _content(file: Path) -> str:
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)

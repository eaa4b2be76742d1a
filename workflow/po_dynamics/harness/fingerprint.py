"""Content hash of a script and of every module of this package that it imports, transitively.

Snakemake compares a `script:` by modification time and does not see imported modules. This hash is of the syntax tree
without docstrings, so that comments, formatting, `touch` and `git clone` change nothing, and an edit of a module
changes exactly the stages that import it. Nothing is imported to compute it. What runs no science is left out
(`EXEMPT`): a better log line must not train a model again.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from po_dynamics.errors import InputError

PACKAGE = Path(__file__).parents[1]
EXEMPT = ("errors", "harness")  # modules, or folders of modules, never followed
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def fingerprint(script: Path | str, package: Path = PACKAGE) -> str:
    """Sixteen hexadecimal digits that change when the code that `script` runs changes.

    Raises:
        InputError: an import of this package that leads nowhere.
    """
    digest = hashlib.sha256()
    files = _reachable(Path(script), package)
    for name, file in sorted((_name(file, package), file) for file in files):
        digest.update(f"{name}\0{_content(file)}\0".encode())
    return digest.hexdigest()[:16]


def _name(file: Path, package: Path) -> str:
    return str(file.relative_to(package)) if file.is_relative_to(package) else file.name


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
    exempt = [".".join([package.name, name]) for name in EXEMPT]
    found = set()
    for module, name in _references(file, package):
        target = f"{module}.{name}" if name and _locate(f"{module}.{name}", package) else module
        if any(f"{target}.".startswith(f"{prefix}.") for prefix in exempt):
            continue
        path = _locate(target, package)
        if path is None or (name and target == module and path.name == "__init__.py" and not _defines(path, name)):
            wanted = f"{module}.{name}" if name else module
            raise InputError(f"{file}: the import of {wanted} leads to no module of {package}; correct or remove it")
        found.add(path)
    return tuple(sorted(found))


def _references(file: Path, package: Path) -> Iterator[tuple[str, str | None]]:
    """(module, imported name) of every import of the package that is not for type checkers only."""
    by_string = re.compile(rf"{package.name}(\.\w+)+(:\w+)?")
    for node in _executed(_tree(file)):
        if isinstance(node, ast.Import):
            pairs: list[tuple[str, str | None]] = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            pairs = [(_absolute(node, file, package), alias.name) for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and by_string.fullmatch(node.value):
            pairs = [(node.value.partition(":")[0], None)]
        else:
            continue
        yield from (pair for pair in pairs if f"{pair[0]}.".startswith(f"{package.name}."))


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but the bodies of `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _executed(child)


def _absolute(node: ast.ImportFrom, file: Path, package: Path) -> str:
    if not node.level:
        return node.module or ""
    folder = file.parents[node.level - 1].relative_to(package.parent)
    return ".".join([*folder.parts, *filter(None, [node.module])])


def _locate(module: str, package: Path) -> Path | None:
    """The file of a dotted name: a module, or a package's `__init__.py`."""
    path = package.parent.joinpath(*module.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _defines(file: Path, name: str) -> bool:
    return any(getattr(node, "id", getattr(node, "name", None)) == name for node in ast.walk(_tree(file)))


@functools.cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@functools.cache
def _content(file: Path) -> str:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)

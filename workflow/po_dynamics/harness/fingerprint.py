"""Content hash of the code that a stage runs: its script, and what that imports of this package, transitively.

Snakemake compares a `script:` by modification time and does not see imported modules. This hash is of the syntax tree
without docstrings, so that comments, formatting, `touch` and `git clone` change nothing, and an edit of a module
changes exactly the stages that import it. Nothing is imported to compute it. Two things are finer than a module:

* what runs no science is left out (`EXEMPT`): a better log line must not train a model again;
* of `objectives/` only the definitions count that are imported by name, with what they use: a new objective changes
  nothing that exists. An objective that a run names has a hash of its own (`objective_fingerprint`).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from po_dynamics.errors import InputError

PACKAGE = Path(__file__).parents[1]
# Modules, or folders of modules, that are never followed: the harness, settings (their values are parameters of the
# rules), what only looks objectives up and checks them, and where files lie (a moved file is missing, so it is made).
EXEMPT = ("errors", "harness", "settings", "objectives.declaration", "objectives.registry", "storage.layout")
BY_DEFINITION = "objectives"  # the folder whose modules count definition by definition
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Part(NamedTuple):
    """A whole module, or one definition of it."""

    file: Path
    definition: str = ""


def fingerprint(script: Path | str, *functions: str, package: Path = PACKAGE) -> str:
    """Sixteen hexadecimal digits that change when the code that `script` runs changes.

    `functions` are what the script is told to call, each a "module:function" of this package.

    Raises:
        InputError: an import of this package, or a function, that leads nowhere.
    """
    told = [_target(Path(script), function.partition(":")[0], None, package) for function in functions]
    return _digest([Part(Path(script)), *filter(None, told)], package)


def module_fingerprint(module: str, package: Path = PACKAGE) -> str:
    """As `fingerprint`, of a dotted module of this package, which a configuration names; "" for any other."""
    file = _locate(module, package) if module.startswith(f"{package.name}.") else None
    return _digest([Part(file)], package) if file else ""


def objective_fingerprint(name: str, package: Path = PACKAGE) -> str:
    """As `fingerprint`, of one objective: its function and what that uses inside `objectives/`."""
    for file in sorted((package / BY_DEFINITION).glob("*.py")):
        if any(isinstance(node, ast.FunctionDef) and node.decorator_list for node in _definition(file, name)):
            return _digest([Part(file, name)], package)
    raise InputError(f"no module of {package / BY_DEFINITION} declares the objective {name!r}")


def _digest(start: list[Part], package: Path) -> str:
    digest = hashlib.sha256()
    for part in sorted(_reachable(start, package)):
        inside = part.file.is_relative_to(package)
        name = str(part.file.relative_to(package)) if inside else part.file.name
        digest.update(f"{name}\0{part.definition}\0{_content(part)}\0".encode())
    return digest.hexdigest()[:16]


def _reachable(start: Iterable[Part], package: Path) -> set[Part]:
    seen: set[Part] = set()
    stack = list(start)
    while stack:
        part = stack.pop()
        if part not in seen:
            seen.add(part)
            stack.extend(_uses(part, package))
    return seen


@functools.cache
def _uses(part: Part, package: Path) -> tuple[Part, ...]:
    """What a part needs: the imports of a module, inside functions too; of a definition, the names that occur in it."""
    if not part.definition:
        found = {_target(part.file, *reference, package) for reference in _references(part.file, package)}
        return tuple(sorted(target for target in found if target is not None))
    names = {node.id for root in _definition(*part) for node in ast.walk(root) if isinstance(node, ast.Name)}
    local = {Part(part.file, name) for name in names if name != part.definition and _definition(part.file, name)}
    imported = {_target(part.file, *reference, package) for reference in _references(part.file, package, names)}
    return tuple(sorted(local | {target for target in imported if target is not None}))


def _target(file: Path, module: str, name: str | None, package: Path) -> Part | None:
    """What an import in `file` leads to; None for what is exempt."""
    dotted = f"{module}.{name}" if name and _locate(f"{module}.{name}", package) else module
    if any(f"{dotted}.".startswith(f"{package.name}.{prefix}.") for prefix in EXEMPT):
        return None
    found = _locate(dotted, package)
    if found is None or (name and dotted == module and found.name == "__init__.py" and not _definition(found, name)):
        wanted = f"{module}.{name}" if name else module
        raise InputError(f"{file}: the import of {wanted} leads to no module of {package}; correct or remove it")
    if found.parent != package / BY_DEFINITION:
        return Part(found)
    if not name or dotted != module or not _definition(found, name):
        raise InputError(f"{file}: of {dotted}, import definitions by name: each counts by itself")
    return Part(found, name)


def _references(file: Path, package: Path, names: set[str] | None = None) -> Iterator[tuple[str, str | None]]:
    """(module, imported name) of every import of the package that is not for type checkers only.

    With `names`, only imports that bind one of them.
    """
    for node in _mentions(file, package.name):
        pairs: list[tuple[str, str | None]] = []
        if isinstance(node, ast.Import):
            pairs = [(alias.name, None) for alias in node.names if names is None]
        elif isinstance(node, ast.ImportFrom):
            wanted = [alias for alias in node.names if names is None or (alias.asname or alias.name) in names]
            pairs = [(_absolute(node, file, package), alias.name) for alias in wanted]
        elif names is None:
            pairs = [(node.value.partition(":")[0], None)]
        yield from (pair for pair in pairs if f"{pair[0]}.".startswith(f"{package.name}."))


@functools.cache
def _mentions(file: Path, package: str) -> list[Any]:
    """Imports, and strings that name a module or function of the package."""
    by_string = re.compile(rf"{package}(\.\w+)+(:\w+)?")
    return [
        node
        for node in _executed(_tree(file))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        or (isinstance(node, ast.Constant) and isinstance(node.value, str) and by_string.fullmatch(node.value))
    ]


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


def _definition(file: Path, name: str) -> list[ast.stmt]:
    """The statements at the top of a module that define a name."""

    def defined(node: ast.stmt) -> Iterator[str]:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        yield from (leaf.id for target in targets if target for leaf in ast.walk(target) if isinstance(leaf, ast.Name))

    return [node for node in _tree(file).body if name in defined(node)]


@functools.cache
def _tree(file: Path) -> ast.Module:
    """The syntax tree without docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


@functools.cache
def _content(part: Part) -> str:
    return "".join(map(ast.dump, _definition(*part) if part.definition else [_tree(part.file)]))

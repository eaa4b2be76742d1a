"""Versions are stated once, in requirements.lock, and everything else agrees with it."""

import ast
import functools
import importlib.metadata
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCK = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE))


def test_the_lock_pins_exact_versions_without_builds_or_hosts():
    lines = [
        line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert len(lines) == len(LOCK) > 50
    assert not any("+" in version for version in LOCK.values())


@pytest.mark.parametrize("file", sorted((ROOT / "envs").glob("*.yaml")), ids=lambda p: p.stem)
def test_conda_environments_agree_with_the_lock(file):
    dependencies = yaml.safe_load(file.read_text())["dependencies"]
    (pip,) = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
    assert pip
    for requirement in pip:
        name, _, version = requirement.partition("==")
        assert LOCK.get(name) == version, f"{file.name}: {requirement}, but the lock has {name}=={LOCK.get(name)}"


def imports(file: Path) -> Iterator[str]:
    """Dotted names that a file imports, inside functions too, and the modules of ours that its strings name."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"^(po_dynamics[\w.]*):\w+$", node.value)


@functools.cache
def foreign(file: Path) -> frozenset[str]:
    """Distributions that a file and all of ours that it imports need."""
    seen, found, stack = set(), set(), [file]
    distributions = importlib.metadata.packages_distributions()
    while stack:
        file = stack.pop()
        for name in set(imports(file)):
            path = ROOT / "workflow" / name.replace(".", "/")
            module = next((m for m in (path.with_suffix(".py"), path / "__init__.py") if m.is_file()), None)
            if module and module not in seen:
                seen.add(module)
                stack.append(module)
            root = name.partition(".")[0]
            if file.name == "job.py" and root == "torch":
                continue  # which it takes only where it is loaded already
            if root != "po_dynamics" and root not in sys.stdlib_module_names:
                found |= set(map(canonicalize_name, distributions.get(root, [])))
    return frozenset(found)


def closure(requirements: list[str]) -> set[str]:
    """Distributions that pip installs for these."""
    seen, stack = set(), [Requirement(line) for line in requirements]
    while stack:
        wanted = stack.pop()
        name = canonicalize_name(wanted.name)
        if name not in seen:
            seen.add(name)
            try:
                needed = map(Requirement, importlib.metadata.requires(name) or [])
            except importlib.metadata.PackageNotFoundError:
                continue
            stack += [other for other in needed if other.marker is None or other.marker.evaluate({"extra": ""})]
    return seen


HEAD = re.compile(r"^ *(?:use rule (?P<base>\w+) as (?P<other>\w+) with|rule (?P<name>\w+)):$", flags=re.MULTILINE)


def rules() -> Iterator[tuple[str, str, set[Path]]]:
    """Name, environment and files of every rule: its script, and the functions that its parameters name."""
    for file in sorted((ROOT / "workflow/rules").glob("*.smk")):
        text = file.read_text()
        constants = dict(re.findall(r'^(\w+) = "(po_dynamics[\w.]+):\w+"', text, flags=re.MULTILINE))
        chosen = {
            name: re.findall(r"envs/(\w+\.yaml)", line)
            for name, line in re.findall(r"^(\w+_ENVIRONMENT) = (.+)$", text, re.M)
        }
        heads, known = list(HEAD.finditer(text)), {}
        ends = [head.start() for head in heads[1:]] + [len(text)]
        for head, end in zip(heads, ends if heads else [], strict=True):
            block = text[head.end() : end]
            found = dict(re.findall(r"\.\./(scripts|envs)/(\w+\.\w+)", block.replace("../../", "../")))
            known[head["other"] or head["name"]] = stated = known.get(head["base"], {}) | found
            called = [module for constant, module in constants.items() if re.search(rf"\b{constant}\b", block)]
            if "scripts" in stated:
                modules = {ROOT / "workflow" / f"{module.replace('.', '/')}.py" for module in called}
                files = {ROOT / f"workflow/scripts/{stated['scripts']}", *modules}
                one_of = next((envs for name, envs in chosen.items() if name in block), None)
                for env in one_of or [stated["envs"]]:
                    yield head["other"] or head["name"], env, files


def test_environments_have_what_the_scripts_of_their_rules_import():
    """As Snakemake runs them with --software-deployment-method conda; the snakemake object brings its own path."""
    checked, lacking = set(), {}
    for rule, env, files in rules():
        dependencies = yaml.safe_load((ROOT / "envs" / env).read_text())["dependencies"]
        (pip,) = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
        needed = frozenset().union(*map(foreign, files)) - {"snakemake"}
        checked.add(env)
        if missing := needed - closure(pip):
            lacking[rule] = sorted(missing)
    assert checked == {path.name for path in (ROOT / "envs").glob("*.yaml")}
    assert not lacking


def test_containers_install_the_lock_and_nothing_else():
    docker = (ROOT / "containers/Dockerfile").read_text()
    apptainer = (ROOT / "containers/po-dynamics.def").read_text()
    bases = re.findall(r"^F(?:ROM|rom:) (\S+)$", docker + apptainer, flags=re.MULTILINE)
    assert len(bases) == 2
    assert len(set(bases)) == 1
    python = yaml.safe_load((ROOT / "envs/train.yaml").read_text())["dependencies"][0]
    assert bases[0].startswith(python.replace("python=", "python:"))
    for text in (docker, apptainer):
        installs = re.findall(r"pip install (.*?)(?: \\)?$", text, flags=re.MULTILINE)
        assert [line.replace("--no-cache-dir ", "") for line in installs] == [
            "\"$(grep '^torch==' /opt/requirements.lock)\"",
            "--requirement /opt/requirements.lock",
        ]
        assert not re.search(r"==\d", text)
        assert "build-essential git make" in text
    assert "!requirements.lock" in (ROOT / ".dockerignore").read_text()


@pytest.mark.parametrize(
    "package", ["torch", "transformers", "trl", "datasets", "pandas", "seaborn", "snakemake", "alpaca_eval"]
)
def test_installed_versions_are_those_of_the_lock(package):
    assert importlib.metadata.version(package).partition("+")[0] == LOCK[package]


def test_versions_are_pinned_nowhere_else():
    assert "==" not in (ROOT / "pyproject.toml").read_text()
    assert "==2" not in (ROOT / "Makefile").read_text()

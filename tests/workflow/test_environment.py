"""Versions are stated once, in requirements.lock, and everything else agrees with it."""

import importlib.metadata
import re
from pathlib import Path

import pytest
import yaml

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


@pytest.mark.parametrize(
    "package", ["torch", "transformers", "trl", "datasets", "pandas", "seaborn", "snakemake", "alpaca_eval"]
)
def test_installed_versions_are_those_of_the_lock(package):
    assert importlib.metadata.version(package).partition("+")[0] == LOCK[package]


def test_versions_are_pinned_nowhere_else():
    assert "==" not in (ROOT / "pyproject.toml").read_text()
    assert "==2" not in (ROOT / "Makefile").read_text()

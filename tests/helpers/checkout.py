"""Copies of the workflow, and Snakemake on the smoke configuration in them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SNAKEMAKE = [sys.executable, "-m", "snakemake"]
FILES = ["Snakefile", "config", "workflow", "envs", "slurm"]


def snakemake(directory: Path, *arguments: str, config: str = "smoke") -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*SNAKEMAKE, "--configfile", f"config/{config}.yaml", "--cores", "2", *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, env=environment)


def clone(destination: Path) -> Path:
    """The files of the workflow, as they are in this checkout."""
    destination.mkdir(parents=True)
    for name in FILES:
        source, target = ROOT / name, destination / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return destination


def plan(directory: Path, *arguments: str, config: str = "smoke") -> dict[str, int]:
    """Rules that a dry run would execute, with the number of their jobs."""
    done = snakemake(directory, "--dry-run", "--quiet", "rules", *arguments, config=config)
    assert done.returncode == 0, done.stdout + done.stderr
    table = re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, flags=re.MULTILINE)
    return {rule: int(count) for rule, count in table if rule not in ("all", "total")}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path} has no {old!r}"
    path.write_text(text.replace(old, new, 1))

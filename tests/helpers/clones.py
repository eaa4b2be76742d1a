"""Copies of the workflow in which tests may run it."""

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = ["Snakefile", "config", "workflow", "envs", "slurm"]


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

"""Writes what the paper's jobs ask for into docs/cluster.md: `python -m po_dynamics.harness.job_table`.

With names of configuration files it prints the table of these, merged as Snakemake merges them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from snakemake.utils import update_config

from po_dynamics.errors import InputError
from po_dynamics.harness import config as configuration
from po_dynamics.harness.config import Experiment, Run
from po_dynamics.harness.resources import STAGES, Devices, disk, fitting_devices, memory, of, parameters

ROOT = Path(__file__).parents[3]
COMMAND = "python -m po_dynamics.harness.job_table"
BEGIN, END = f"<!-- begin: written by `{COMMAND}` -->", "<!-- end -->"
SIZES = (80.0, 141.0)  # GB of the cards that the page shows
JOBS = 50  # at once, of slurm/config.yaml


def table(experiment: Experiment, cards: Sequence[float] = SIZES, per_node: int = 8) -> str:
    """A row for each model and stage: cards of each size with GB of each, GB of the host, hours; then the disk."""
    head = ["model", "stage", *(f"cards of {card:g} GB" for card in cards), "host GB", "hours at most"]
    lines = [_row(head), _row(["---"] * len(head))]
    for name, model in experiment.config["models"].items():
        for stage in _stages(experiment, name):
            lines.append(_row([name, stage, *_cells(model, stage, [Devices(card, per_node) for card in cards])]))
    return "\n".join([*lines, "", _disk(experiment)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _stages(experiment: Experiment, model: str) -> Iterator[str]:
    """The stages that the experiment has of a model, and the probe in any case."""
    runs = [run for (name, _), run in experiment.runs.items() if name == model]
    families = {run.family for run in runs}
    trained = experiment.config["models"][model]["reward"]["source"] == "train"
    absent = {"download", *(() if trained else ("reward",)), *({"offline", "online"} - families)}
    if "offline" not in families:
        absent.add("reference")
    for stage in STAGES:
        if stage not in absent:
            yield stage


def _cells(model: Mapping[str, Any], stage: str, sizes: Sequence[Devices]) -> list[str]:
    asked = []
    for devices in sizes:
        try:
            count = fitting_devices(model, stage, devices)
            held = memory(model, stage, count)
            asked.append(f"{count} × {held.peak:.0f} ({held.weights:.0f} + {held.working:.0f})")
        except InputError:
            most = devices.per_node if STAGES[stage].sharded else 1
            asked.append(f"does not fit: {memory(model, stage, most).peak:.0f} on each of {most}")
    try:
        job = of(model, stage, sizes[0])
    except InputError:
        return [*asked, "–", "–"]
    return [*asked, f"{job['mem_mb'] / 1000:.0f}", f"{job['runtime'] / 60:.0f}"]


def _disk(experiment: Experiment) -> str:
    """How much the runs keep before they are probed and evaluated: the largest, and the largest JOBS at once."""
    sizes = sorted((_disk_of(experiment, run) for run in experiment.runs.values() for _ in run.seeds), reverse=True)
    some = min(JOBS, len(sizes))
    return (
        f"Disk: a run's checkpoints and resumable state take up to {sizes[0]:.0f} GB until it is probed and evaluated; "
        f"the {some} largest at once take {sum(sizes[:some]):.0f} GB, all {len(sizes)} trainings {sum(sizes):.0f} GB. "
        f"`jobs` of the profile says how many run at once."
    )


def _disk_of(experiment: Experiment, run: Run) -> float:
    return disk(parameters(experiment.config["models"][run.model]["base"]) / 1e9, run.family, len(run.steps))


def load(files: Sequence[Path]) -> Experiment:
    """The experiment of configuration files, each merged over those before it."""
    merged: dict[str, Any] = {}
    for file in files:
        update_config(merged, yaml.safe_load(file.read_text(encoding="utf-8")))
    return configuration.load(merged)


def page(text: str) -> str:
    """docs/cluster.md with the table of the paper between its marks."""
    new = f"{BEGIN}\n\n{table(load([ROOT / 'config/paper.yaml']))}\n\n{END}"
    return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: new, text, flags=re.DOTALL)


def main() -> None:
    """Writes the page, or prints the table of the files that are named."""
    if sys.argv[1:]:
        try:
            experiment = load(list(map(Path, sys.argv[1:])))
            size = Devices(experiment.config["device_memory_gb"], experiment.config["devices_per_node"])
            print(table(experiment, [size.memory], size.per_node))
        except (InputError, OSError, yaml.YAMLError) as error:
            sys.exit(f"error: {error}")
        return
    path = ROOT / "docs/cluster.md"
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Error of G, and of its sign, by precision: float64, float32, TF32 (on CUDA only) and bfloat16 on the same samples.

    python benchmarks/numerics.py RUN_FOLDER [--reference FOLDER] [--samples 48] [--precisions fp64 fp32 bf16]

RUN_FOLDER is a run of the workflow, results/<experiment>/<model>/<run>/seed<n>: every probed checkpoint is probed again
on its own stored samples. The truth is float64. TF32 changes matrix products on CUDA only.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from po_dynamics.dynamics import tables
from po_dynamics.dynamics.alignment import Probe, dynamics
from po_dynamics.models.loading import load_model
from po_dynamics.objectives.registry import bind
from po_dynamics.probe.passes import Options, Sampling, probe, with_reference
from po_dynamics.probe.run import DTYPES
from po_dynamics.probe.samples import Sample, from_frame
from transformers import PreTrainedModel

COMPONENTS = ["TOT", "POS", "NEG", "TOP", "MID", "BOT"]


def load(folder: Path, precision: str) -> PreTrainedModel:
    return load_model(folder, attention="eager", dtype="float32" if precision == "tf32" else DTYPES[precision])


def stored(folder: Path, n: int) -> tuple[list[Sample], list[Sample], dict]:
    """The first mini-batches of D and D′ of a probed checkpoint, about n samples each, with advantages."""
    content = tables.read(folder)
    samples = from_frame(content.samples)
    train, final = ([s for s in samples if s.set == name] for name in ("train", "final"))
    train = [s for s in train if s.batch <= train[min(n, len(train)) - 1].batch]
    advantages = dict(list(content.scores.groupby("sample_id", sort=False)["advantage"]))
    if content.metadata["family"] == "online":
        train = [replace(s, advantages=advantages[s.sample_id].to_numpy(), ref_logps=None) for s in train]
    return train, final[:n], content.metadata


def alignment(
    checkpoint: Path, reference: Path, train: list[Sample], final: list[Sample], about: dict, precision: str
) -> pd.Series:
    """G by component."""
    if about["family"] == "offline":
        train = with_reference(train, load(reference, precision), tf32=precision == "tf32")
    options = Options(sampling=Sampling(about["temperature"]), audits=0, tolerance=np.inf, tf32=precision == "tf32")
    model = load(checkpoint, precision)
    result = probe(model, train, final, bind(about["objective"], about["parameters"]), about["step"], options)
    table = dynamics(Probe({}, result)).query("segment == 'all' and not filtered")
    return table.set_index("component")[["G", "G_low", "G_high"]].loc[COMPONENTS].assign(step=about["step"])


def checkpoints(run: Path, final_set: str) -> Iterator[tuple[Path, Path]]:
    """Checkpoint and probe folder of every step."""
    for folder in sorted((run / "probe" / final_set).glob("step-*"), key=lambda path: int(path.name[5:])):
        yield run / "checkpoints" / folder.name, folder


def study(run: Path, reference: Path, n: int, precisions: list[str], final_set: str) -> pd.DataFrame:
    """`step, component, precision, G, truth, error` (relative to the largest component), `sign_differs`."""
    rows = []
    for checkpoint, folder in checkpoints(run, final_set):
        train, final, about = stored(folder, n)
        truth = alignment(checkpoint, reference, train, final, about, "fp64")
        for precision in precisions:
            table = alignment(checkpoint, reference, train, final, about, precision)
            frame = pd.DataFrame({"step": about["step"], "precision": precision, "G": table["G"], "truth": truth["G"]})
            frame["error"] = (frame["G"] - frame["truth"]).abs() / truth["G"].abs().max()
            frame["sign_differs"] = np.sign(frame["G"]) != np.sign(frame["truth"])
            frame["within"] = (frame["G"] - frame["truth"]).abs() / (truth["G_high"] - truth["G_low"])
            rows.append(frame.reset_index())
    return pd.concat(rows, ignore_index=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run", type=Path, help="results/<experiment>/<model>/<run>/seed<n>, with checkpoints and probes"
    )
    parser.add_argument("--reference", type=Path, help="default: ../../sft of the run")
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--final-set", default="heldout")
    available = [name for name in (*DTYPES, "tf32") if name != "fp64" and (name != "tf32" or torch.cuda.is_available())]
    parser.add_argument("--precisions", nargs="+", default=available)
    arguments = parser.parse_args()
    reference = arguments.reference or arguments.run.parents[1] / "sft"
    table = study(arguments.run, reference, arguments.samples, arguments.precisions, arguments.final_set)
    summary = table.groupby(["precision", "component"], sort=False).agg(
        median_error=("error", "median"),
        largest_error=("error", "max"),
        share_of_interval=("within", "max"),
        signs_wrong=("sign_differs", "sum"),
        checkpoints=("step", "nunique"),
    )
    header = ["precision", "component", "median error", "largest error", "largest error / interval"]
    header += ["signs wrong", "checkpoints"]
    print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    for (precision, component), row in summary.iterrows():
        print(
            f"| {precision} | {component} | {row.median_error:.1e} | {row.largest_error:.1e} | "
            f"{row.share_of_interval:.1e} | {row.signs_wrong:.0f} | {row.checkpoints:.0f} |"
        )


if __name__ == "__main__":
    main()

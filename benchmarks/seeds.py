"""Is noise between trainings called a difference, and is a true difference found? On real seeds of one method.

    python benchmarks/seeds.py results/EXPERIMENT [--runs dpo ppo] [--planted 5]

Every division of a run's seeds into two equal sides is compared as two methods would be, at the last checkpoint: the
share that is called different (p < 0.05). Then the planted number of points is added to one side: the share found,
beside what the power calculation says. The experiment needs ten seeds a run (`runs: {dpo: {..., seeds: [0, ..., 9]}}`).
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
from po_dynamics.evaluation.comparisons import compare, power
from po_dynamics.storage import layout


def outcomes(results: Path, run: str) -> np.ndarray:
    """(S, N, 1): of every seed at its last checkpoint and every prompt, the mean of both orders, in points."""
    seeds: dict[str, list[pd.DataFrame]] = {}
    for keys, path in layout.find(layout.EVALUATION + layout.ANNOTATIONS, results):
        if keys["run"] == run:
            seeds.setdefault(keys["seed"], []).append(pd.read_parquet(path))
    columns = []
    for parts in seeds.values():
        table = pd.concat(parts)
        last = table[table["step"] == table["step"].max()].sort_values("id")
        columns.append(100 * last[["preference", "preference_swapped"]].mean(axis=1).to_numpy())
    return np.stack(columns)[..., None]


def divisions(outcomes_SN1: np.ndarray, planted: float) -> tuple[float, float]:
    """Shares of divisions called different, and found with the right sign once `planted` points are on one side."""
    count, different, found, total = len(outcomes_SN1), 0, 0, 0
    for side in itertools.combinations(range(count), count // 2):
        ours, theirs = outcomes_SN1[list(side)], np.delete(outcomes_SN1, side, 0)
        same, moved = compare(ours, theirs), compare(ours + planted, theirs)
        different += same.p < 0.05
        found += moved.p < 0.05 and moved.difference > 0
        total += 1
    return different / total, found / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--runs", nargs="+", default=["dpo", "ppo"])
    parser.add_argument("--planted", type=float, default=5.0, help="points")
    arguments = parser.parse_args()
    print("| run | seeds | rates | deviation | called different | planted | found | power |\n" + "|---" * 8 + "|")
    for run in arguments.runs:
        values = outcomes(arguments.results, run)
        rates, side = values.mean((1, 2)), len(values) // 2
        different, found = divisions(values, arguments.planted)
        expected = power(arguments.planted, rates.std(ddof=1), side, len(values) - side)
        cells = [run, len(values), f"{rates.min():.1f} to {rates.max():.1f}", f"{rates.std(ddof=1):.2f}"]
        cells += [f"{different:.3f}", f"{arguments.planted:g}", f"{found:.3f}", f"{expected:.3f}"]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()

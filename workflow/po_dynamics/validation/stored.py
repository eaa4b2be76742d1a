"""What the trainings left on disk, joined with the probe's tables to the tables of validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from po_dynamics.dynamics import stored
from po_dynamics.storage import layout
from po_dynamics.validation.datamodels import Halves, datamodelling_scores, pair_scores, predictions
from po_dynamics.validation.effects import effects

HEADS = ["model", "run"]


def all_effects(folders: Sequence[Path], intervals: Sequence[Mapping[str, int]], dynamics: Path) -> pd.DataFrame:
    """`effects` of every folder of `layout.WITHOUT`; `intervals` has `next_step` and `updates` of each."""
    alignment = pd.read_parquet(dynamics)
    parts = []
    for folder, interval in zip(folders, intervals, strict=True):
        found = layout.parse(folder, layout.WITHOUT)
        keys = {"model": found["model"], "run": found["run"], "seed": int(found["seed"]), "step": int(found["step"])}
        parts.append(effects(folder, keys, dynamics=alignment, **interval))
    return pd.concat(parts, ignore_index=True)


def all_scores(chunks: Sequence[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`predictions` and `datamodelling_scores` of every model, from all its folders of `layout.HALVES`."""
    found = pd.DataFrame([{**layout.parse(chunk, layout.HALVES), "folder": chunk} for chunk in chunks])
    halves: list[pd.DataFrame] = []
    scores: list[pd.DataFrame] = []
    for (model, run, seed), of_model in found.groupby(["model", "run", "seed"]):
        trained = Halves(*(_joined(list(of_model["folder"]), name) for name in Halves._fields))
        place = {
            "experiment": str(of_model["experiment"].iloc[0]),
            "model": str(model),
            "run": str(run),
            "seed": str(seed),
        }
        of_pairs = _pair_scores(place)
        for parts, table in (
            (halves, predictions(of_pairs, trained).reset_index()),
            (scores, datamodelling_scores(of_pairs, trained)),
        ):
            parts.append(table.assign(model=str(model), run=str(run))[[*HEADS, *table.columns]])
    return pd.concat(halves, ignore_index=True), pd.concat(scores, ignore_index=True)


def _joined(folders: Sequence[Path], name: str) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(folder / f"{name}.parquet") for folder in folders], ignore_index=True)


def _pair_scores(place: Mapping[str, str]) -> pd.DataFrame:
    """Of the probed checkpoints of one training, in ascending order."""
    probes = stored.steps_of([layout.PROBE.format(**place, final_set="heldout")])
    rates = pd.read_csv(layout.CURVES.format(**place), index_col="step")["learning_rate"]
    return pair_scores([stored.load(keys, folder) for keys, folder in probes], rates)

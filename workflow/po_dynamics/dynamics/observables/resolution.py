"""Which signs of G are known, and how many samples would tell the others."""

from __future__ import annotations

import numpy as np
import pandas as pd

KEYS = ["model", "run", "final_set", "filtered", "component"]
COLUMNS = [*KEYS, "checkpoints", "known", "n_train", "n_final", "needed", "needed_low", "needed_high"]


def resolution(dynamics: pd.DataFrame) -> pd.DataFrame:
    """One row per run and component of the whole model, with and without outliers, over its checkpoints and seeds.

    `known` of `checkpoints` signs are known (their two-way interval excludes 0) from `n_train` samples of D and
    `n_final` of D′. `needed` samples of each side would tell the sign at half of the checkpoints, in half of the draws,
    if G there is what it is measured to be; `needed_low` and `needed_high` say the same if |G| is at the far and at the
    near end of its interval (inf where the interval includes 0: then only a lower bound is known). Checkpoints where
    all weights are equal do not count for the groups by weight.
    """
    rows = dynamics[(dynamics["segment"] == "all") & dynamics["two_way"]]
    rows = rows[~(rows["equal_weights"] & ~rows["component"].isin(["TOT", "POS", "NEG"]))]
    rows = pd.concat([rows, _bounds(rows)], axis=1)
    groups = rows.groupby(KEYS, sort=False)
    table = groups.agg(
        checkpoints=("G", "size"),
        known=("resolved", "sum"),
        n_train=("n_train", "max"),
        n_final=("n_final", "max"),
        needed=("samples_needed", "median"),
        needed_low=("needed_low", "median"),
        needed_high=("needed_high", "median"),
    )
    return table.reset_index()[COLUMNS]


def _bounds(rows: pd.DataFrame) -> pd.DataFrame:
    """Samples needed if |G| is at either end of its interval."""
    ends = rows[["G_low", "G_high"]].abs()
    scaled = rows["samples_needed"] * rows["G"] ** 2
    near = ends.min(axis=1).where(rows["resolved"], 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        bounds = {
            "needed_low": scaled / ends.max(axis=1) ** 2,
            "needed_high": (scaled / near**2).where(near > 0, np.inf),
        }
    return pd.DataFrame({name: np.ceil(values) for name, values in bounds.items()}, index=rows.index)

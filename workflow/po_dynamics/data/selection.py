"""The preference pairs that a model trains on."""

from __future__ import annotations

import shutil
from pathlib import Path

from po_dynamics.data.schema import COLUMNS
from po_dynamics.storage.atomic import atomic_file
from po_dynamics.storage.parquet import read_table


def copy_preferences(data: Path, output: Path) -> None:
    """Gives a model all preference pairs of a published data set, as they are.

    `data` is the folder of data sets. InputError where it has no pairs, or they lack a column.
    """
    preferences = data / "preferences.parquet"
    read_table(preferences, ["id", *COLUMNS["preferences"]])
    with atomic_file(output) as temporary:
        shutil.copyfile(preferences, temporary)

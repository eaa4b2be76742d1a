"""How figures look as a whole, and how they are written: sizes for a page, stable files with their captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

from po_dynamics.storage.atomic import atomic_file


def theme() -> Any:
    """Context manager: seaborn's ticks style with sizes for a page 7.2 inches wide."""
    style = {
        "font.family": "DejaVu Sans",
        "axes.linewidth": 0.7,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.grid": True,
        "axes.grid.axis": "y",
        "grid.color": "#e6e6e6",
        "grid.linewidth": 0.6,
        "xtick.major.width": 0.7,
        "ytick.major.width": 0.7,
        "pdf.fonttype": 42,
    }
    sizes = {"font.size": 8, "axes.titlesize": 8.5, "axes.labelsize": 8, "xtick.labelsize": 7.5, "ytick.labelsize": 7.5}
    settings: dict[Any, Any] = {**sns.axes_style("ticks"), **style, **sizes}
    return plt.rc_context(settings)


def save(figure: Figure, output: Path, title: str, caption: str) -> None:
    """Writes `output` (PNG, 200 dpi) and a PDF beside it, identical for identical input.

    The PNG carries its title and caption as text metadata, `Title` and `Description`: the report reads them there.
    """
    pdf = {"Title": title, "Subject": caption, "CreationDate": None, "ModDate": None}
    png = {"Title": title, "Description": caption, "Software": None}
    for path, metadata in ((output.with_suffix(".pdf"), pdf), (output, png)):
        look: dict[str, Any] = {"format": path.suffix[1:], "bbox_inches": "tight", "pad_inches": 0.04, "dpi": 200}
        with atomic_file(path) as temporary:
            figure.savefig(temporary, metadata=metadata, **look)
    plt.close(figure)

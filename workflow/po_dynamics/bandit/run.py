"""The whole experiment: settings in, tables out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from po_dynamics.bandit.alignment import align
from po_dynamics.bandit.bandits import draw
from po_dynamics.bandit.claims import judge
from po_dynamics.bandit.convergence import converge, law_of_steps
from po_dynamics.bandit.samples import finite_samples
from po_dynamics.settings.bandit import ExactBandit
from po_dynamics.storage.atomic import atomic_file


@torch.inference_mode()
def run_bandit(output: Path | str, settings: Mapping[str, Any] | None = None) -> None:
    """Runs everything and writes the tables into a folder, each complete or absent; the same settings, the same bytes.

    Args:
        output: gets `bandit.csv` (distance from the target over steps), `bandit_ends.csv` (of each prompt, at the
            end), `bandit_law.csv` (steps against τ), `bandit_samples.csv` (finite data), `bandit_alignment.csv` (G over
            steps), `bandit_signs.csv` (G's sign against what happened) and `bandit_claims.csv`.
        settings: `bandit` of a configuration: what differs from the defaults.

    Raises:
        InputError: impossible settings, or a learning rate at which something diverges.
    """
    chosen = ExactBandit.of(settings or {}, "bandit")
    bandits = draw(chosen)
    curves, ends = converge(bandits, chosen)
    law = law_of_steps(ends, chosen)
    alignment, signs = align(bandits, chosen)
    tables = {
        "bandit": curves,
        "bandit_ends": ends,
        "bandit_law": law,
        "bandit_samples": finite_samples(bandits, chosen),
        "bandit_alignment": alignment,
        "bandit_signs": signs,
        "bandit_claims": judge(ends, law, alignment, signs, chosen),
    }
    for name, table in tables.items():
        with atomic_file(Path(output) / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False, lineterminator="\n")

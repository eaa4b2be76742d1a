"""Trainings on random halves of the preference pairs: the ground truth of the linear datamodelling score.

Park et al. 2023 (arXiv 2303.14186), Definition 2.3, with the negative log-likelihood of D′ as the model's output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from transformers import AutoConfig

from po_dynamics.data.preferences import Pairs
from po_dynamics.data.tokens.table import write_part
from po_dynamics.models.loading import usable_length
from po_dynamics.objectives.declaration import Objective
from po_dynamics.storage.state import identity
from po_dynamics.validation.losses import response_losses
from po_dynamics.validation.trainings import Training, train_and_measure


@dataclass(frozen=True)
class FullTraining:
    """What a half is a half of."""

    init: Path
    preferences: Path  # what `tokenise` wrote, of this model
    reference: Path
    objective: Objective
    settings: Mapping[str, Any]
    seed: int  # of the order of rows
    final_responses: Path  # D′ of the full training


def half(count: int, subset: int, seed: int) -> np.ndarray:
    """Rows of random half number `subset` of `count` rows, ascending; the same whatever other halves are drawn."""
    return np.sort(np.random.default_rng((seed, subset)).permutation(count)[: count // 2])


def train_halves(
    full: FullTraining, train: Callable[..., None], subsets: Sequence[int], seed: int, output: Path, state: Path
) -> None:
    """Writes `losses` (`arm, id, nll` of D′), `members` (`arm, pair`) and `rates`; `arm` is the number of the half.

    Every half is trained for as many steps as the whole, so a pair comes up twice as often.
    """
    pairs = Pairs(full.preferences, usable_length(AutoConfig.from_pretrained(full.init), full.settings["max_length"]))
    last = int(full.settings["max_steps"])
    settings = {**full.settings, "checkpoints": [last]}
    about = {"init": full.init, "reference": full.reference, "objective": full.objective, "settings": settings}
    members = {str(subset): half(len(pairs), subset, seed) for subset in subsets}

    def train_on(subset: str, **arguments: Any) -> None:
        part = state / f"{subset}.arrow"
        write_part(full.preferences, pairs.rows[members[subset]], part)
        train(**arguments, preferences=part)

    def measure(subset: str, checkpoint: Path) -> dict[str, pd.DataFrame]:
        ids = pairs.table.names(pairs.rows[members[subset]])
        losses = response_losses(checkpoint, full.final_responses)
        return {"losses": losses, "members": pd.DataFrame({"pair": ids})}

    files = [full.init, full.preferences, full.reference, full.final_responses]
    signature: dict[str, Any] = {"objective": [full.objective.name, full.objective.parameters], "settings": settings}
    signature |= {"seeds": [full.seed, seed], "subsets": list(subsets), "inputs": list(map(identity, files))}
    trainings = [Training(arm, {**about, "seed": full.seed, "subset": arm}) for arm in members]
    train_and_measure(trainings, train_on, last, measure, output, state, signature)

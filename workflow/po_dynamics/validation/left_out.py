"""One interval of a run trained again: with everything, and without each component of its objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from po_dynamics.evaluation.judge import judge_responses
from po_dynamics.evaluation.responses import evaluate_responses
from po_dynamics.objectives.declaration import Objective
from po_dynamics.storage.state import identity
from po_dynamics.validation.losses import response_losses
from po_dynamics.validation.trainings import Training, train_and_measure


@dataclass(frozen=True)
class Interval:
    """Where the interval lies, and what its trainings are measured on."""

    start: Path  # the checkpoint step-<first_step> of a run
    first_step: int
    last_step: int
    final_responses: Path  # D′ of that run
    sft: Path  # the model whose responses are the baseline
    eval_prompts: Path  # what `tokenise` wrote, of this model
    baseline: Path  # the SFT model's responses to them
    judge: str
    responses: Mapping[str, Any]  # `evaluation` of the configuration, what responses depend on


def retrain_without(
    interval: Interval,
    train: Callable[..., None],
    inputs: Mapping[str, Any],
    objectives: Mapping[str, Objective],
    settings: Mapping[str, Any],
    seed: int,
    output: Path,
    state: Path,
) -> None:
    """Writes `losses` (`arm, id, nll`), `judged` (`arm, id, preference, preference_swapped`) and `rates`.

    Args:
        train: the family's trainer, `inputs` the files that it takes beside the initial model.
        objectives: by arm; every arm sees the same rows in the same order (online: prompts and random numbers).
        settings: of the run; the interval ends training.
    """
    settings = {**settings, "max_steps": interval.last_step, "checkpoints": [interval.last_step]}
    about = {**inputs, "settings": settings, "seed": seed, "first_step": interval.first_step}
    trainings = [Training(arm, {**about, "objective": objective}) for arm, objective in objectives.items()]
    named = {arm: [objective.name, objective.parameters] for arm, objective in objectives.items()}
    files = [interval.start, interval.final_responses, interval.baseline]
    signature = {"arms": named, "settings": settings, "seed": seed, "inputs": list(map(identity, files))}

    def measure(_: str, checkpoint: Path) -> dict[str, pd.DataFrame]:
        losses = response_losses(checkpoint, interval.final_responses)
        return {"losses": losses, "judged": _judged(checkpoint, interval, state / "judging")}

    train_and_measure(trainings, train, interval.last_step, measure, output, state, signature)


def _judged(checkpoint: Path, interval: Interval, folder: Path) -> pd.DataFrame:
    """`id, preference, preference_swapped` of the greedy responses, against the SFT model's."""
    responses, annotations = folder / "responses.parquet", folder / "annotations.parquet"
    steps = {interval.last_step: checkpoint}
    evaluate_responses(steps, interval.sft, None, interval.eval_prompts, responses, interval.responses)
    return judge_responses(responses, interval.baseline, annotations, interval.judge).drop(columns="step")

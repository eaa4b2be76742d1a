"""How the episodes of an update divide: over processes, mini-batches, and groups that answer one prompt."""

from __future__ import annotations

from po_dynamics.errors import InputError
from po_dynamics.objectives.declaration import Objective
from po_dynamics.settings.online import Online


def check_processes(settings: Online, processes: int) -> None:
    """InputError unless the batch divides into mini-batches, and each mini-batch over the processes."""
    if settings.batch_size % (settings.mini_batches * processes):
        raise InputError(
            f"online: batch_size {settings.batch_size} must be a multiple of mini_batches × processes = "
            f"{settings.mini_batches} × {processes}"
        )


def group_size(settings: Online, objective: Objective, samples: int = 0) -> int | None:
    """Responses whose rewards are normalised together; None for an objective whose advantages are GAE's.

    InputError for groups of one, and where `samples`, the roll-outs of the probe, are no whole number of groups.
    """
    size = settings.rollouts_per_prompt
    if not objective.grouped:
        return None
    if size == 1:
        raise InputError(
            f"online: {objective.name} compares responses to one prompt: rollouts_per_prompt must be above 1"
        )
    if samples % size:
        raise InputError(
            f"probe.samples is {samples}, but {objective.name} needs a multiple of rollouts_per_prompt = {size}"
        )
    return size

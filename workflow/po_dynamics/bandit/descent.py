"""Gradient descent on the logits, and how far the policy is from its target on the way."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from po_dynamics.bandit.gradients import Coefficients, Gradient, ascent
from po_dynamics.errors import InputError
from po_dynamics.settings.bandit import ExactBandit

STILL = 1e-9  # a step that moves no log-prob by more has arrived where it goes
WITHIN = 0.9  # of the tolerance


class Step(NamedTuple):
    """The policy before the step, and the coefficients that move it."""

    logps_RK: Tensor
    coefficients: Coefficients


def path(gradient: Gradient, start_RK: Tensor, learning_rate: float) -> Iterator[Step]:
    """Steps without end of gradient descent from a policy's log-probs.

    Raises:
        InputError: when the logits are not finite any more.
    """
    logps_RK = start_RK
    for step in itertools.count():
        coefficients = gradient(logps_RK, step)
        yield Step(logps_RK, coefficients)
        total_RK = coefficients.positive_RK + coefficients.negative_RK
        logps_RK = (logps_RK + learning_rate * ascent(total_RK, logps_RK)).log_softmax(1)
        if not bool(torch.isfinite(logps_RK.sum())):
            raise InputError(f"bandit: diverged at step {step} with learning_rate {learning_rate}; lower it")


def distances(logps_RK: Tensor, target_RK: Tensor) -> tuple[Tensor, Tensor]:
    """Total variation, and KL(π ‖ target) in nats, of each row."""
    probs_RK = logps_RK.exp()
    return (probs_RK - target_RK.exp()).abs().sum(1) / 2, (probs_RK * (logps_RK - target_RK)).sum(1)


class Run(NamedTuple):
    """Distances on the way and at the end; `reached_R` is the first step after which TV stays below the tolerance."""

    steps_T: np.ndarray
    tv_TR: np.ndarray
    kl_TR: np.ndarray
    reached_R: np.ndarray  # NaN where it is above at the end
    logps_RK: np.ndarray  # at the end


def run(gradient: Gradient, start_RK: Tensor, target_RK: Tensor, settings: ExactBandit) -> Run:
    """Descends until every row is well within the tolerance, or stands still, or `max_steps` are over."""
    marks, kept = set(spaced(settings.max_steps)), []
    last_above_R, previous_RK = torch.full(start_RK.shape[:1], -1), start_RK
    for step, (logps_RK, _) in enumerate(path(gradient, start_RK, settings.learning_rate)):
        tv_R, kl_R = distances(logps_RK, target_RK)
        last_above_R[tv_R >= settings.tolerance] = step
        moving_R = (logps_RK - previous_RK).abs().amax(1) > STILL if step else torch.ones_like(tv_R, dtype=torch.bool)
        over = step >= settings.max_steps or not bool((moving_R & (tv_R > WITHIN * settings.tolerance)).any())
        previous_RK = logps_RK
        if step in marks or over:
            kept.append((step, tv_R, kl_R))
        if over:
            break
    steps, tv, kl = zip(*kept, strict=True)
    reached_R = torch.where(last_above_R < steps[-1], last_above_R.double() + 1, torch.nan)
    arrays = (torch.stack(tv).numpy(), torch.stack(kl).numpy(), reached_R.numpy(), logps_RK.numpy())
    return Run(np.array(steps), *arrays)


def spaced(last: int, per_decade: int = 12) -> list[int]:
    """0, and steps up to `last` that are about evenly spaced in their logarithm."""
    exponents = np.arange(0, np.log10(max(last, 1)) + 1e-9, 1 / per_decade)
    return sorted({0, last, *np.round(10**exponents).astype(int).tolist()})

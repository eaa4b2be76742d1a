"""Finite data: hard labels, drawn or certain, against soft ones."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from po_dynamics.bandit.bandits import Bandits, target
from po_dynamics.bandit.descent import distances, path
from po_dynamics.bandit.gradients import of_pairs
from po_dynamics.bandit.laws import arm_law, fixed, labels, pair_weights, sampled
from po_dynamics.settings.bandit import ExactBandit

ALL = 0  # of `pairs`: the exact expectation
# labels: the objective, how the chosen response is found, and what the training sees of it
LABELS = {"soft": ("pra", "certain"), "drawn": ("dpo", "drawn"), "certain": ("dpo", "certain")}


def finite_samples(bandits: Bandits, settings: ExactBandit) -> pd.DataFrame:
    """Posterior PRA (soft labels) and DPO (hard ones) at `temperature`, pairs of arms drawn uniformly.

    Returns:
        `labels, pairs, draw, prompt, tv, kl`: distance from the target after `fit_steps` steps; `pairs` per prompt,
        0 being all of them (the exact expectation). Labels are `soft`, `drawn` (Bradley–Terry) or `certain` (the better
        response always wins, so that no finite policy is optimal).
    """
    generator = torch.Generator().manual_seed(settings.seed)
    sets = [(size, draw) for size in settings.sample_sizes for draw in range(settings.draws)] + [(ALL, 0)]
    index = pd.DataFrame([(*data, prompt) for data in sets for prompt in range(settings.prompts)])
    tables = []
    for name, (objective, kind) in LABELS.items():
        exact_PM = pair_weights(arm_law(bandits, "uniform", 0), labels(bandits, kind))
        weights = [sampled(exact_PM, size, generator) if size else exact_PM for size, _ in sets]
        tv, kl = _fit(objective, torch.cat(weights), bandits.repeat(len(sets)), settings)
        tables.append(index.set_axis(["pairs", "draw", "prompt"], axis=1).assign(labels=name, tv=tv, kl=kl))
    return pd.concat(tables, ignore_index=True)[["labels", "pairs", "draw", "prompt", "tv", "kl"]]


def _fit(objective: str, weights_RM: Tensor, rows: Bandits, settings: ExactBandit) -> tuple[np.ndarray, np.ndarray]:
    """Total variation and KL after the descent; it starts from π_ref."""
    tau = settings.temperature
    gradient = of_pairs(objective, tau, "posterior", rows, fixed(weights_RM))
    steps = islice(path(gradient, rows.ref_logps_RK, settings.learning_rate), settings.fit_steps, None)
    tv_R, kl_R = distances(next(steps).logps_RK, target(rows, tau, "posterior"))
    return tv_R.numpy(), kl_R.numpy()

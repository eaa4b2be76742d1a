"""Finite data: hard labels, drawn or certain, against soft ones."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from po_dynamics.bandit.bandits import Bandits, Settings, target
from po_dynamics.bandit.descent import run
from po_dynamics.bandit.gradients import of_pairs
from po_dynamics.bandit.laws import arm_law, fixed, labels, pair_weights, sampled

ALL = 0  # of `pairs`: the exact expectation
# labels: the objective, how the chosen response is found, and what the training sees of it
LABELS = {"soft": ("pra", "certain"), "drawn": ("dpo", "drawn"), "certain": ("dpo", "certain")}


def finite_samples(bandits: Bandits, settings: Settings) -> pd.DataFrame:
    """Posterior PRA (soft labels) and DPO (hard ones) at `temperature`, pairs of arms drawn uniformly.

    Returns:
        `labels, pairs, draw, prompt, tv, kl`: distance from the target after `max_steps` at most; `pairs` per prompt,
        0 being all of them (the exact expectation). Labels are `soft`, `drawn` (Bradley–Terry) or `certain` (the better
        response always wins, so that no finite policy is optimal).
    """
    generator = torch.Generator().manual_seed(settings.seed)
    tables = []
    for name, (objective, kind) in LABELS.items():
        for pairs in (*settings.sample_sizes, ALL):
            draws = settings.draws if pairs else 1
            rows = bandits.repeat(draws)
            exact_RM = pair_weights(arm_law(rows, "uniform", 0), labels(rows, kind))
            weights_RM = sampled(exact_RM, pairs, generator) if pairs else exact_RM
            tv, kl = _fit(objective, weights_RM, rows, settings)
            index = pd.MultiIndex.from_product([range(draws), range(settings.prompts)], names=["draw", "prompt"])
            table = pd.DataFrame({"tv": tv, "kl": kl}, index=index).reset_index()
            tables.append(table.assign(labels=name, pairs=pairs))
    return pd.concat(tables, ignore_index=True)[["labels", "pairs", "draw", "prompt", "tv", "kl"]]


def _fit(objective: str, weights_RM: Tensor, rows: Bandits, settings: Settings) -> tuple[Tensor, Tensor]:
    tau = settings.temperature
    gradient = of_pairs(objective, tau, "posterior", rows, fixed(weights_RM))
    done = run(gradient, rows.ref_logps_RK, target(rows, tau, "posterior"), settings)
    return done.tv_TR[-1], done.kl_TR[-1]

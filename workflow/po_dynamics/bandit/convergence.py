"""Which objective reaches which target, how fast, and the law steps ∝ τ^−p."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from po_dynamics.bandit.bandits import Bandits, target
from po_dynamics.bandit.descent import Run, run
from po_dynamics.bandit.gradients import Gradient, of_divergence, of_pairs, of_ppo
from po_dynamics.bandit.laws import OFFLINE, ON_POLICY, arm_law, fixed, labels, on_policy, pair_weights
from po_dynamics.errors import InputError
from po_dynamics.settings.bandit import ExactBandit

VARIANTS = ("plain", "posterior")
OF_REWARDS = ("ra", "rda", "pra")
DRAWS = 2000  # bootstrap samples over prompts
KEYS = ["objective", "variant", "tau", "coverage"]


class Case(NamedTuple):
    """One descent: rows are the prompts under each of the coverages, one block after the other."""

    objective: str
    variant: str
    tau: float
    coverages: tuple[str, ...]
    bandits: Bandits
    gradient: Gradient

    @property
    def keys(self) -> dict[str, str | float]:
        return {"objective": self.objective, "variant": self.variant, "tau": self.tau}


def cases(bandits: Bandits, tau: float, settings: ExactBandit) -> Iterator[Case]:
    """Everything that is compared at one τ; DPO has a prior by definition, PRA-P is posterior PRA on-policy."""
    for variant in VARIANTS:
        yield Case("bda", variant, tau, (ON_POLICY,), bandits, of_divergence(tau, variant, bandits))
        yield Case("ppo", variant, tau, (ON_POLICY,), bandits, of_ppo(tau, variant, bandits, settings.ppo_epochs))
        for objective in OF_REWARDS:
            yield from offline(objective, variant, tau, bandits, settings)
    law = on_policy(labels(bandits, "certain"))
    yield Case("pra", "posterior", tau, (ON_POLICY,), bandits, of_pairs("pra", tau, "posterior", bandits, law))
    yield from offline("dpo", "posterior", tau, bandits, settings)


def offline(objective: str, variant: str, tau: float, bandits: Bandits, settings: ExactBandit) -> Iterator[Case]:
    """The fixed laws of pairs: those that support every arm in one descent, the one that does not in another.

    DPO under drawn labels is posterior PRA in expectation: it is shown where pairs are uniform, and where some miss.
    """
    supported = OFFLINE[:1] if objective == "dpo" else OFFLINE[:-1]
    for coverages in (supported, OFFLINE[-1:]):
        rows = bandits.repeat(len(coverages))
        arms_RK = torch.cat([arm_law(bandits, coverage, settings.missing) for coverage in coverages])
        kind = "drawn" if objective == "dpo" else "certain"  # hard labels are drawn; soft ones are in the loss
        law = fixed(pair_weights(arms_RK, labels(rows, kind)))
        yield Case(objective, variant, tau, coverages, rows, of_pairs(objective, tau, variant, rows, law))


def converge(bandits: Bandits, settings: ExactBandit) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Descends every case at every τ, from π_ref.

    Returns:
        `objective, variant, tau, coverage, step, tv, kl`: means over prompts of the total variation and of
        KL(π ‖ target) (nats), and of tv the smallest and largest of a prompt (`tv_low, tv_high`); and, of each prompt,
        `objective, variant, tau, coverage, prompt, steps, tv, kl`: at the end, `steps` being those until tv stays below
        the tolerance (NaN: it does not).
    """
    curves, ends = [], []
    for tau in settings.temperatures:
        for case in cases(bandits, tau, settings):
            done = run(case.gradient, case.bandits.ref_logps_RK, target(case.bandits, tau, case.variant), settings)
            for block, coverage in enumerate(case.coverages):
                rows = slice(block * settings.prompts, (block + 1) * settings.prompts)
                curves.append(_curve(done, rows).assign(**case.keys, coverage=coverage))
                ends.append(_end(done, rows).assign(**case.keys, coverage=coverage))
    columns = [*KEYS, "step", "tv", "kl", "tv_low", "tv_high"], [*KEYS, "prompt", "steps", "tv", "kl"]
    return pd.concat(curves, ignore_index=True)[columns[0]], pd.concat(ends, ignore_index=True)[columns[1]]


def _curve(done: Run, rows: slice) -> pd.DataFrame:
    tv, kl = done.tv_TR[:, rows], done.kl_TR[:, rows]
    spread = {"tv_low": tv.min(1), "tv_high": tv.max(1)}
    return pd.DataFrame({"step": done.steps_T, "tv": tv.mean(1), "kl": kl.mean(1), **spread})


def _end(done: Run, rows: slice) -> pd.DataFrame:
    steps, tv, kl = done.reached_R[rows], done.tv_TR[-1, rows], done.kl_TR[-1, rows]
    return pd.DataFrame({"prompt": np.arange(len(tv)), "steps": steps, "tv": tv, "kl": kl})


def law_of_steps(ends: pd.DataFrame, settings: ExactBandit) -> pd.DataFrame:
    """The exponent p of steps ∝ τ^−p, by least squares of log steps on log τ over all prompts.

    Returns:
        `objective, variant, coverage, tau, steps, exponent, low, high, factor`: the geometric mean over prompts of the
        steps, ≈ factor · τ^−exponent, and a 95 % bootstrap interval of the exponent over prompts. Cases that a prompt
        does not finish are left out.

    Raises:
        InputError: when no case is finished.
    """
    tables = []
    names = ["objective", "variant", "coverage"]
    for keys, table in ends.groupby(names, sort=False):
        if table["steps"].isna().any():
            continue
        steps_TP = table.pivot(index="tau", columns="prompt", values="steps").clip(lower=1)
        slopes_P, intercept = _slopes(np.log(steps_TP.index.to_numpy()), np.log(steps_TP.to_numpy()))
        low, high = interval(slopes_P, settings.seed)
        found = {"exponent": -slopes_P.mean(), "low": -high, "high": -low, "factor": np.exp(intercept)}
        steps = pd.DataFrame({"tau": steps_TP.index, "steps": np.exp(np.log(steps_TP.to_numpy()).mean(1))})
        tables.append(steps.assign(**{name: str(key) for name, key in zip(names, keys, strict=True)}, **found))
    if not tables:
        raise InputError(f"bandit: nothing came within {settings.tolerance} in {settings.max_steps} steps; allow more")
    return pd.concat(tables, ignore_index=True)[[*names, "tau", "steps", "exponent", "low", "high", "factor"]]


def _slopes(log_taus_T: np.ndarray, log_steps_TP: np.ndarray) -> tuple[np.ndarray, float]:
    """Each prompt's slope over log τ (they share the design, so the common slope is their mean), common intercept."""
    centred_T = log_taus_T - log_taus_T.mean()
    slopes_P = centred_T @ log_steps_TP / (centred_T @ centred_T)
    return slopes_P, float(log_steps_TP.mean() - slopes_P.mean() * log_taus_T.mean())


def interval(values: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of one value per prompt."""
    picks = np.random.default_rng(seed).integers(0, len(values), (DRAWS, len(values)))
    low, high = np.quantile(values[picks].mean(1), [0.025, 0.975])
    return float(low), float(high)

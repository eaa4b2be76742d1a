"""Gradient alignment where everything is known: does the sign of G say what happens next?

Eq. 3 of arXiv 2512.00778 with exact expectations, q the law of the final policy's responses:
G = ⟨E_q[−∇log π], ∇L⟩ = ⟨q − π, −∇L⟩ on the logits. One step of gradient descent with learning rate η changes
l = E_q log π by η G − (η²/2) gᵀHg + O(η³), g = ∇L and H = diag π − ππᵀ ≥ 0: l is concave in the logits, hence
**G ≤ 0 implies that l does not rise**, while G > 0 promises a rise only where it outweighs the curvature.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from po_dynamics.bandit.bandits import Bandits
from po_dynamics.bandit.convergence import interval
from po_dynamics.bandit.descent import path, spaced
from po_dynamics.bandit.gradients import Gradient, ascent, of_divergence, of_pairs
from po_dynamics.bandit.laws import arm_law, fixed, labels, mini_batches, pair_weights
from po_dynamics.settings.bandit import ExactBandit

GAPS = (1, 10, 100)
FINAL = ("greedy", "drawn")  # final responses: the likeliest one, or all in proportion
TOLD = 1e-10  # nats; a smaller change is rounding
KEYS = ["objective", "coverage", "training"]
TAKEN = (("bda", "policy"), ("rda", "uniform"), ("pra", "uniform"), ("dpo", "uniform"), ("dpo", "missing"))


class Trajectory(NamedTuple):
    """Log-probs (T + 1, P, K) before and after T steps, and the two components of the exact −∇L at each of the T."""

    logps: Tensor
    positive: Tensor
    negative: Tensor


def trajectories(bandits: Bandits, settings: ExactBandit) -> Iterator[tuple[dict[str, str], Trajectory]]:
    """Posterior objectives at `temperature`, trained exactly; DPO also on mini-batches of a few drawn pairs."""
    tau = settings.temperature
    for objective, coverage in TAKEN:
        keys = {"objective": objective, "coverage": coverage, "training": "exact"}
        if objective == "bda":
            gradient = of_divergence(tau, "posterior", bandits)
            yield keys, _follow(gradient, gradient, bandits, settings)
            continue
        kind = "drawn" if objective == "dpo" else "certain"
        weights_RM = pair_weights(arm_law(bandits, coverage, settings.missing), labels(bandits, kind))
        exact = of_pairs(objective, tau, "posterior", bandits, fixed(weights_RM))
        yield keys, _follow(exact, exact, bandits, settings)
        if (objective, coverage) == ("dpo", "uniform"):
            law = mini_batches(weights_RM, settings.batch, torch.Generator().manual_seed(settings.seed))
            noisy = of_pairs(objective, tau, "posterior", bandits, law)
            yield keys | {"training": "mini-batches"}, _follow(noisy, exact, bandits, settings)


def _follow(trained: Gradient, exact: Gradient, bandits: Bandits, settings: ExactBandit) -> Trajectory:
    """`alignment_steps` steps of one gradient, with the other's components."""
    steps = islice(path(trained, bandits.ref_logps_RK, settings.learning_rate), settings.alignment_steps + 1)
    logps = torch.stack([step.logps_RK for step in steps])
    components = [exact(logps_RK, step) for step, logps_RK in enumerate(logps[:-1])]
    positive, negative = (ascent(torch.stack(part), logps[:-1]) for part in zip(*components, strict=True))
    return Trajectory(logps, positive, negative)


def final_responses(logps_PK: Tensor, final: str) -> Tensor:
    """q (P, K): the law of the final policy's responses."""
    if final == "drawn":
        return logps_PK.exp()
    return torch.nn.functional.one_hot(logps_PK.argmax(1), logps_PK.shape[1]).double()


def align(bandits: Bandits, settings: ExactBandit) -> tuple[pd.DataFrame, pd.DataFrame]:
    """G of the whole objective (TOT) and its components, and what the steps did.

    Returns:
        `objective, coverage, training, final, component, step, G, G_low, G_high, change`: means over prompts at some
        steps, of G with an interval over prompts; `change` is that of l (nats) in the next step, for POS and NEG in a
        step of that component alone; and
        `objective, coverage, training, final, component, gap, positive, agreement, low, high, steps, wrong_falls`: the
        share of (prompt, step) with G > 0 and with the sign of the change over the next `gap` steps, an interval over
        prompts, the number of (prompt, step), and of those with G ≤ 0 and a rise.
    """
    curves, signs = [], []
    for keys, trajectory in trajectories(bandits, settings):
        for final in FINAL:
            q_PK = final_responses(trajectory.logps[-1], final)
            for component, gaps in (("TOT", GAPS), ("POS", (1,)), ("NEG", (1,))):
                named = keys | {"final": final, "component": component}
                G_TP, step_TP = alignment_of(trajectory, q_PK, component, settings)
                curves.append(_curve(G_TP, step_TP, settings.seed).assign(**named))
                for gap in gaps:
                    change_TP = step_TP if component != "TOT" else _change(trajectory, q_PK, gap)
                    signs.append(named | {"gap": gap} | _agreement(G_TP[: len(change_TP)], change_TP, settings))
    columns = [*KEYS, "final", "component", "step", "G", "G_low", "G_high", "change"]
    return pd.concat(curves, ignore_index=True)[columns], pd.DataFrame(signs)


def alignment_of(t: Trajectory, q_PK: Tensor, component: str, settings: ExactBandit) -> tuple[np.ndarray, np.ndarray]:
    """G (T, P), and the change of l in one step of the component alone (TOT: in the step taken)."""
    before = t.logps[:-1]
    direction = {"TOT": t.positive + t.negative, "POS": t.positive, "NEG": t.negative}[component]
    G_TP = ((q_PK - before.exp()) * direction).sum(-1)
    alone = (before + settings.learning_rate * direction).log_softmax(-1)
    after = t.logps[1:] if component == "TOT" else alone
    return G_TP.numpy(), (q_PK * (after - before)).sum(-1).numpy()


def _change(t: Trajectory, q_PK: Tensor, gap: int) -> np.ndarray:
    likelihood_TP = (q_PK * t.logps).sum(-1)
    return (likelihood_TP[gap:] - likelihood_TP[:-gap]).numpy()


def _agreement(G_TP: np.ndarray, change_TP: np.ndarray, settings: ExactBandit) -> dict[str, float]:
    told_TP = np.abs(change_TP) > TOLD
    same_TP = told_TP & ((G_TP > 0) == (change_TP > 0))
    share_P = same_TP.sum(0) / np.maximum(told_TP.sum(0), 1)
    low, high = interval(share_P, settings.seed)
    found = {"positive": (G_TP > 0)[told_TP].mean(), "agreement": share_P.mean(), "low": low, "high": high}
    return found | {"steps": int(told_TP.sum()), "wrong_falls": int((told_TP & (G_TP <= 0) & (change_TP > 0)).sum())}


def _curve(G_TP: np.ndarray, change_TP: np.ndarray, seed: int) -> pd.DataFrame:
    steps = spaced(len(G_TP) - 1)
    low, high = np.transpose([interval(G_TP[step], seed) for step in steps])
    values = {"G": G_TP[steps].mean(1), "G_low": low, "G_high": high, "change": change_TP[steps].mean(1)}
    return pd.DataFrame({"step": steps, **values})

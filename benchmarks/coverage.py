"""Do 95 % intervals of G hold the truth? Re-draws D and D′ from the samples of probed checkpoints, whose G is known.

    python benchmarks/coverage.py results/demo [--runs dpo ppo] [--steps 50 42] [--samples 240] [--draws 200]

The samples of a probe are the pool; their G is the truth. Every draw takes samples of D and of D′ from it, with
replacement, and makes the interval that `dynamics.intervals` would, exactly: the inner products of all gradients are
computed once, sample by sample. Printed: how many intervals hold the truth, over both sides and over D alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from po_dynamics.dynamics import tables
from po_dynamics.dynamics.coefficients import PAIR_ROLES, component_masks
from po_dynamics.dynamics.intervals import Side, interval
from po_dynamics.dynamics.stored import find
from po_dynamics.models.batches import collate
from po_dynamics.models.loading import load_model
from po_dynamics.probe import token_scores
from po_dynamics.probe.gradients import spread
from po_dynamics.probe.samples import Sample, from_frame
from po_dynamics.storage import layout
from transformers import PreTrainedModel

COMPONENTS = ("TOT", "POS")
BLOCK = 64  # gradients that are multiplied at once


class Pool(NamedTuple):
    """Inner products of every response of D′ (M) with every sample of D (N), by component; sizes of these (N,)."""

    products: dict[str, np.ndarray]
    sizes_N: np.ndarray


def pool(model: PreTrainedModel, content: tables.Tables) -> Pool:
    """All inner products of a probe's samples, from one gradient per sample."""
    samples = from_frame(content.samples)
    final_MP = torch.stack([_final(model, s) for s in samples if s.set == "final"])
    scores = content.scores
    masks = component_masks(scores, scores["weight"].to_numpy())
    sample, ids = pd.factorize(scores["sample_id"])
    pairs = set(scores["role"]) <= set(PAIR_ROLES)
    sizes = np.ones(len(ids)) if pairs else np.bincount(sample).astype(float)
    coefficient = scores["coefficient"].to_numpy() * sizes.sum()
    rows = scores.groupby(["sample_id", "role"], sort=False).indices
    by_id: dict[str, list[Sample]] = {}
    for one in samples:
        if one.set == "train":
            by_id.setdefault(one.sample_id, []).append(one)
    products: dict[str, list[torch.Tensor]] = {name: [] for name in COMPONENTS}
    for first in range(0, len(ids), BLOCK):
        gradients = [
            _pair_or_rollout(model, by_id[name], coefficient, masks, rows) for name in ids[first : first + BLOCK]
        ]
        for c, component in enumerate(COMPONENTS):
            products[component].append(final_MP @ torch.stack([parts[c] for parts in gradients]).T)
    return Pool({name: torch.cat(parts, 1).double().numpy() for name, parts in products.items()}, sizes)


def _pair_or_rollout(
    model: PreTrainedModel,
    samples: list[Sample],
    coefficient: np.ndarray,
    masks: dict[str, np.ndarray],
    rows: dict[tuple[str, str], np.ndarray],
) -> list[torch.Tensor]:
    """Gradients (P,) of the components, summed over the responses of one sample of D."""
    found = []
    for one in samples:
        at = rows[one.sample_id, one.role]
        found.append(_train(model, one, [coefficient[at] * masks[c][at] for c in COMPONENTS]))
    return [torch.stack(parts).sum(0) for parts in zip(*found, strict=True)]


def _final(model: PreTrainedModel, sample: Sample) -> torch.Tensor:
    gradient, _ = token_scores.nll_gradient(model, collate([sample.prompt_ids], [sample.response_ids], 0))
    return torch.cat([part.flatten() for part in gradient])


def _train(model: PreTrainedModel, sample: Sample, coefficients: list[np.ndarray]) -> list[torch.Tensor]:
    batch = collate([sample.prompt_ids], [sample.response_ids], 0)
    sums = token_scores.no_sums(model, len(coefficients))
    token_scores.add_gradients(model, batch, [spread(values, batch) for values in coefficients], sums)
    weights = list(model.parameters())
    filled = ([torch.zeros_like(w) if g is None else g for w, g in zip(weights, part, strict=True)] for part in sums)
    return [torch.cat([gradient.flatten() for gradient in part]) for part in filled]


def covered(products_MN: np.ndarray, sizes_N: np.ndarray, samples: int, draws: int) -> dict[str, float]:
    """Shares of draws whose interval holds the truth, and the mean of half its width beside |G|."""
    truth = products_MN.mean(0).sum() / sizes_N.sum()
    random, hits = np.random.default_rng(0), {"two_way": 0, "D_alone": 0}
    halves = []
    for _ in range(draws):
        of_final = random.integers(len(products_MN), size=samples)
        of_train = random.integers(len(sizes_N), size=samples)
        drawn, sizes = products_MN[np.ix_(of_final, of_train)], sizes_N[of_train]
        train, final = Side(drawn.mean(0), sizes), Side(drawn.sum(1) / sizes.sum(), np.ones(samples))
        both, alone = interval(train, final), interval(train)
        hits["two_way"] += both.G_low <= truth <= both.G_high
        hits["D_alone"] += alone.G_low <= truth <= alone.G_high
        halves.append((both.G_high - both.G_low) / 2)
    return {"truth": truth, "half": float(np.mean(halves))} | {name: n / draws for name, n in hits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--runs", nargs="+", default=["dpo", "ppo"])
    parser.add_argument("--steps", nargs="+", type=int, help="default: all that are probed")
    parser.add_argument("--samples", type=int, default=240, help="of D and of D′ in a draw")
    parser.add_argument("--draws", type=int, default=200)
    arguments = parser.parse_args()
    print(
        "| run | step | component | G of the pool | half the width | two-way | D alone |\n|---|---|---|---|---|---|---|"
    )
    for keys, folder in find(arguments.results):
        if keys["run"] not in arguments.runs or keys["seed"] or keys["final_set"] != "heldout":
            continue
        if arguments.steps and keys["step"] not in arguments.steps:
            continue
        experiment = arguments.results.name
        checkpoints = Path(layout.CHECKPOINTS.format(experiment=experiment, **keys))
        checkpoint = arguments.results.parents[1] / checkpoints / f"step-{keys['step']}"
        made = pool(load_model(checkpoint, attention="eager"), tables.read(folder))
        for component, products in made.products.items():
            row = covered(products, made.sizes_N, arguments.samples, arguments.draws)
            cells = [keys["run"], keys["step"], component, *(f"{row[name]:.3g}" for name in row)]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()

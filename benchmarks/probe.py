"""The probe against the way one would first write it: time, error, peak memory, distance to the floor.

    python benchmarks/probe.py [--models tiny medium] [--samples 96] [--repeats 3]

Naive: for every mini-batch and each of TOT, POS, NEG, TOP, MID, BOT, one forward and backward of the masked loss and a
dot product with v; it gets the masks and weights for nothing and the fastest attention that the model has. Ours: token
scores in forward mode, coefficients, and the reverse pass with its checks. Both get v. Runs of the two alternate.
Floor: a forward and backward over D′ and over D and a forward-mode pass over D, with nothing else.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from po_dynamics.data.preferences import EncodedPair
from po_dynamics.dynamics.coefficients import component_masks, reweight
from po_dynamics.models.batches import token_logps
from po_dynamics.objectives.registry import bind
from po_dynamics.probe.numerics import exact_arithmetic
from po_dynamics.probe.passes import Options, Passes, mini_batches, with_reference
from po_dynamics.probe.samples import Sample, final_samples, pair_samples
from po_dynamics.storage.pieces import Pieces
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

COMPONENTS = ("TOT", "POS", "NEG", "TOP", "MID", "BOT")
# hidden, layers, heads, vocabulary, prompt and response lengths (tokens); the demo's model, 34 M and 2.8 B parameters
SIZES = {
    "tiny": (96, 2, 4, 161, (8, 25), (10, 52)),
    "medium": (512, 8, 8, 8192, (32, 128), (32, 128)),
    "pythia-2.8b": (2560, 32, 32, 50304, (128, 256), (128, 256)),
}


def build(size: str, attention: str, dtype: torch.dtype) -> GPTNeoXForCausalLM:
    hidden, layers, heads, vocabulary, prompt, response = SIZES[size]
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=prompt[1] + response[1],
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return GPTNeoXForCausalLM._from_config(config, attn_implementation=attention).to(device, dtype).eval()


def sample(size: str, family: str, count: int) -> tuple[list[Sample], list[Sample]]:
    """D (pairs or roll-outs) and D′ of `count` each; ids are random, lengths uniform."""
    *_, vocabulary, prompt, response = SIZES[size]
    rng = np.random.default_rng(0)

    def ids(bounds: tuple[int, int]) -> list[int]:
        return rng.integers(0, vocabulary, int(rng.integers(*bounds))).tolist()

    final = final_samples([(ids(prompt), ids(response)) for _ in range(count)], 4 if family == "dpo" else 6)
    if family == "dpo":
        return pair_samples(
            [EncodedPair(str(i), ids(prompt), ids(response), ids(response)) for i in range(count)], 4
        ), final
    train = []
    for i in range(count):
        response_ids = ids(response)
        advantages = rng.normal(size=len(response_ids))
        train.append(Sample(str(i), "train", i // 6, "rollout", ids(prompt), response_ids, 0 * advantages, advantages))
    return train, final


class Case:
    """One model, family and precision: D, D′, v and the two ways to G."""

    def __init__(self, size: str, family: str, count: int, dtype: torch.dtype, separate: tuple[str, ...]) -> None:
        self.family = family
        self.model, self.naive_model = build(size, "eager", dtype), build(size, "sdpa", dtype)
        train, final = sample(size, family, count)
        if family == "dpo":
            reference = build(size, "eager", dtype)
            with torch.no_grad():
                for parameter in reference.parameters():
                    parameter.mul_(1.02)
            train = with_reference(train, reference)
        options = Options(separate=separate, audits=0, tolerance=1.0)
        self.passes = Passes(self.model, train, final, options, Pieces(), "benchmark")
        self.passes.bar.disable = True
        with exact_arithmetic(dtype):
            self.v = self.passes.final_gradient()[0]
        self.objective = bind(family, {"beta": 0.1} if family == "dpo" else {})
        self.tokens = sum(s.length for s in train)

    def ours(self) -> dict[str, float]:
        """G of every component, as the probe gets them."""
        with exact_arithmetic(self.passes.dtype):
            return self._ours(self.passes)

    def _ours(self, passes: Passes) -> dict[str, float]:
        passes.pieces = Pieces()
        scores = passes.scores(self.v)
        terms = reweight(scores, self.objective, 0)
        scores = scores.assign(coefficient=terms.coefficient, weight=terms.weight)
        u, _ = passes.train_gradients(self.v, scores, terms.loss, np.random.default_rng(0))
        passes.drifts(u)
        self.table, self.terms = scores, terms
        products = terms.coefficient * scores["score"].to_numpy(np.float64)
        return {name: -float(products[mask].sum()) for name, mask in component_masks(scores, terms.weight).items()}

    def masked(self) -> list[tuple[Any, dict[str, torch.Tensor]]]:
        """Mini-batches with the coefficients of every component: given to the naive way for nothing."""
        masks = component_masks(self.table, self.terms.weight)
        places, result = self.table.groupby("batch").indices, []
        for samples in mini_batches(self.passes.train):
            batch = self.passes._collate(samples)
            at, tables = places[samples[0].batch], {}
            for name in COMPONENTS:
                c_BT = torch.zeros(batch.loss_mask_BT.shape, dtype=next(self.model.parameters()).dtype)
                c_BT = c_BT.to(batch.input_ids_BL.device)
                c_BT[batch.loss_mask_BT] = torch.from_numpy(self.terms.coefficient[at] * masks[name][at]).to(c_BT)
                tables[name] = c_BT
            result.append((batch, tables))
        return result

    def naive(self, batches: list[tuple[Any, dict[str, torch.Tensor]]]) -> dict[str, float]:
        """One forward and backward per component and mini-batch."""
        with exact_arithmetic(self.passes.dtype):
            return self._naive(batches)

    def _naive(self, batches: list[tuple[Any, dict[str, torch.Tensor]]]) -> dict[str, float]:
        totals, names = dict.fromkeys(COMPONENTS, 0.0), [name for name, _ in self.naive_model.named_parameters()]
        weights = list(self.naive_model.parameters())
        for batch, tables in batches:
            for name in COMPONENTS:
                loss = -(tables[name] * token_logps(self.naive_model, batch)).sum()
                gradient = torch.autograd.grad(loss, weights)
                totals[name] += sum(float((g * self.v[k]).sum()) for k, g in zip(names, gradient, strict=True))
                sum(float(g.norm()) ** 2 for g in gradient)  # the norm that the outlier filter needs
        return totals

    def plain(self, model: torch.nn.Module, samples: list[Sample]) -> None:
        """A forward and backward over the samples, gradients accumulated."""
        for group in mini_batches(samples):
            (-token_logps(model, self.passes._collate(group)).sum()).backward()
        model.zero_grad()


def timed(function: Callable[[], Any]) -> float:
    """Seconds: of the process on a CPU (other jobs may share the machine), of the wall clock with a GPU."""
    if not torch.cuda.is_available():
        start = time.process_time()
        function()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(size: str, family: str, count: int, repeats: int, separate: tuple[str, ...]) -> None:
    """Prints one row of the table."""
    case = Case(size, family, count, torch.float32, separate)
    fast = case.ours()  # warms up
    batches = case.masked()
    slow = case.naive(batches)
    times: dict[str, list[float]] = {name: [] for name in ("ours", "naive", "v", "plain", "scores", "plain_D")}
    for _ in range(repeats):
        times["ours"].append(timed(case.ours))
        times["naive"].append(timed(lambda: case.naive(batches)))
        case.passes.pieces = Pieces()
        times["v"].append(timed(case.passes.final_gradient))
        times["plain"].append(timed(lambda: case.plain(case.model, list(case.passes.final))))
        case.passes.pieces = Pieces()
        times["scores"].append(timed(lambda: case.passes.scores(case.v)))
        times["plain_D"].append(timed(lambda: case.plain(case.model, list(case.passes.train))))
    best = {name: min(values) for name, values in times.items()}
    exact = Case(size, family, 4, torch.float64, separate) if size == "tiny" else None
    exactly = f"{largest_error(exact.ours(), exact.naive(exact.masked())):.0e}" if exact else "–"
    floor = best["plain"] + best["scores"] + best["plain_D"]
    row = [size, family, "+".join(separate), f"{best['naive']:.2f}", f"{best['ours']:.2f}"]
    row += [
        f"{best['naive'] / best['ours']:.2f}×",
        f"{best['v'] / best['plain']:.2f}",
        f"{largest_error(fast, slow):.0e}",
    ]
    row += [exactly, f"{(best['v'] + best['ours']) / floor:.2f}", f"{best['scores']:.2f}"]
    print("| " + " | ".join([*row, f"{case.tokens / best['ours']:.0f}"]) + " |", flush=True)


def largest_error(ours: dict[str, float], naive: dict[str, float]) -> float:
    """Of all components, relative to the largest of them."""
    return max(abs(ours[name] - naive[name]) for name in COMPONENTS) / max(map(abs, naive.values()))


def peak(size: str, family: str, way: str, separate: tuple[str, ...]) -> float:
    """Peak resident memory in MiB of this process, in which one way runs over two mini-batches."""
    case = Case(size, family, 8 if family == "dpo" else 12, torch.float32, separate)
    if way == "ours":
        del case.naive_model
        case.ours()
    else:
        case.table = case.passes.scores(case.v)
        case.terms = reweight(case.table, case.objective, 0)
        batches = case.masked()
        del case.model
        case.naive(batches)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compare_peaks(size: str, family: str, separate: tuple[str, ...]) -> None:
    """Prints the peak memory of either way, each in a process of its own."""
    values = {}
    for way in ("naive", "ours"):
        command = [sys.executable, __file__, "--models", size, "--peak", family, way, *separate]
        values[way] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"| {size} | {family} | {'+'.join(separate)} | {values['naive']:.0f} | {values['ours']:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny", "medium"], choices=list(SIZES))
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peak", nargs="+", metavar=("FAMILY", "WAY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        family, way, *separate = arguments.peak
        print(peak(arguments.models[0], family, way, tuple(separate)))
        return
    header = ["model", "D", "separate", "naive s", "ours s", "ratio", "D′: ours / plain", "error", "error in float64"]
    header += ["ours / floor", "scores s", "tokens/s"]
    print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|", flush=True)
    for size in arguments.models:
        for family in ("dpo", "ppo"):
            for separate in (("POS", "NEG"), ("POS", "NEG", "TOP", "MID", "BOT")):
                compare(size, family, arguments.samples, arguments.repeats, separate)
    print("\n| model | D | separate | naive MiB | ours MiB |\n|---|---|---|---|---|")
    for size in arguments.models:
        for family in ("dpo", "ppo"):
            for separate in (("POS", "NEG"), ("POS", "NEG", "TOP", "MID", "BOT")):
                compare_peaks(size, family, separate)


if __name__ == "__main__":
    main()

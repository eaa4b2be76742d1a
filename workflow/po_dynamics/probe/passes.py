"""The probe of one model: exact gradient alignment of any objective and component, as three tables.

    G(L; θ) = ⟨v, u⟩,   v = Ê_{D′}[−∇log π(y′|x′)],   u = ∇L(D; θ) = −Σ_t c_t ∇log π(y_t | y_<t, x)   (Eq. 3)
      = −Σ_{t in D} c_t s_t,         s_t = ⟨v, ∇log π(y_t | y_<t, x)⟩: the score of a token of D
      = Ê_{D′}[Σ_{t in y′} d_t],     d_t = −⟨u, ∇log π(y′_t | y′_<t, x′)⟩: the drift of a token of D′

Four passes: v from one backward over D′; s_t of every token of D by forward mode along v; u, with norms and dot
products per layer, by reverse mode, which also checks the forward mode; d_t of every token of D′ by forward mode along
u. So both sides of the product say what each of their samples adds. Memory: parameters, v, u and one gradient of each
component, and the activations of one mini-batch. The stages that probe checkpoints on disk are in `offline`, `online`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from po_dynamics.dynamics.coefficients import PAIR_ROLES, batch_sizes, component_masks, reweight
from po_dynamics.dynamics.segments import ALL
from po_dynamics.dynamics.tables import Tables
from po_dynamics.models.batches import Batch, collate, least_padding
from po_dynamics.models.loading import context_length
from po_dynamics.models.tokenizers import embedding_rows
from po_dynamics.objectives.declaration import Objective
from po_dynamics.probe import token_scores
from po_dynamics.probe.gradients import (
    SIGNS,
    TOLERANCE,
    Gradients,
    MiniBatch,
    batches_frame,
    norms,
    require_equal_sides,
)
from po_dynamics.probe.numerics import exact_arithmetic
from po_dynamics.probe.samples import Sample, check_samples, samples_frame
from po_dynamics.probe.token_scores import Direction, call_cost
from po_dynamics.storage.pieces import Pieces

CHUNK_TOKENS = 2048  # padded tokens of a forward-mode pass: it stores no activations, so more than in reverse mode fit


class Sampling(NamedTuple):
    """The law that roll-outs of D are sampled from; D′ is greedy, and its log-probs are at temperature 1."""

    temperature: float = 1.0  # also of log π on D
    top_p: float | None = None


class Options(NamedTuple):
    """How to probe; the defaults suit any objective."""

    sampling: Sampling = Sampling()
    # Components that get a gradient of their own, and so drifts, norms, cosines and segments: (POS, NEG) or
    # (POS, NEG, TOP, MID, BOT). All have token scores in any case.
    separate: Sequence[str] = SIGNS
    norms: int | None = None  # mini-batches of D with norms by component, dot products and segments; None: all
    audits: int = 2  # of these, chosen at random, in which every component is also computed by one plain backward
    tolerance: float | None = None  # relative, of forward, reverse and audit; None: 1e-3 (float32), 1e-9 (float64)
    scales: Mapping[str, Tensor] | None = None  # AdamW's P by parameter, for scores and drifts of its steps
    seed: int = 0  # of the choice of audits
    tf32: bool = False  # lets a GPU round the factors of matrix products to ten bits; only to study what that does


def probe(
    model: PreTrainedModel,
    train: Sequence[Sample],
    final: Sequence[Sample],
    objective: Objective,
    step: int = 0,
    options: Options = Options(),  # noqa: B008 - immutable
    pieces: Pieces | None = None,
    label: str = "probe",
) -> Tables:
    """Token scores and drifts, gradient norms and dot products of `objective` on D (`train`) towards D′ (`final`).

    Args:
        model: a causal language model with eager attention; parameters, gradients and mode stay as they are.
        train: mini-batches of pairs (`pair_samples`, then `with_reference`) or of roll-outs (`rollout_samples`).
        final: mini-batches of responses (`final_samples`).
        objective, step: what the coefficients are of, and the step that its schedules are at.
        pieces: keeps what is finished on disk.
        label: of the progress bar.

    Raises:
        InputError: unusable samples, objective or model; passes that disagree by more than the tolerance.
    """
    run = Passes(model, train, final, options, pieces or Pieces(), label)
    with exact_arithmetic(run.dtype, options.tf32), run.bar:
        v, final_rows = run.final_gradient()
        scores = run.scores(v)
        v = {name: tensor.cpu() for name, tensor in v.items()}  # until gradients are measured: u takes its place
        terms = reweight(scores, objective, step)
        scores = scores.assign(coefficient=terms.coefficient, weight=terms.weight)
        u, train_rows = run.train_gradients(v, scores, terms.loss, np.random.default_rng([options.seed, step]))
        drifts = run.drifts(u)
        scores["drift_adamw"] = run.adamw_drift(u)
        u_norms = {"TOT": norms(sum_of_signs(u))} | {name: norms(direction) for name, direction in u.items()}
        masks = component_masks(scores, terms.weight)
        for name in (name for name in u_norms if f"drift_{name}" in drifts):
            of_train = -float((terms.coefficient * scores["score"].to_numpy(np.float64))[masks[name]].sum())
            of_final = float(drifts[f"drift_{name}"].sum()) / len(final)
            require_equal_sides(name, of_train, of_final, norms(v)[ALL] * u_norms[name][ALL], run.tolerance)
    about = _metadata(objective, step, norms(v), u_norms, options.sampling, run.dtype)
    about["id"] = _id(about, scores, drifts)
    return Tables(samples_frame([*train, *final]), scores, drifts, batches_frame([*final_rows, *train_rows]), about)


def _metadata(
    objective: Objective,
    step: int,
    v_norms: Mapping[str, float],
    u_norms: Mapping[str, Mapping[str, float]],
    sampling: Sampling,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """What the tables are of; see `dynamics.tables.Tables`."""
    return {
        "final_set": "",
        "family": objective.family,
        "objective": objective.name,
        "parameters": dict(objective.parameters),
        "step": step,
        **sampling._asdict(),
        "precision": str(dtype).removeprefix("torch."),
        "v_norms": v_norms,
        "u_norms": u_norms,
        "layers": sum(name.startswith("layer.") for name in v_norms),
    }


def _id(about: Mapping[str, Any], *tables: pd.DataFrame) -> str:
    """Hash of what the tables are of and of every number in them."""
    digest = hashlib.sha256(repr(about).encode())
    for table in tables:
        digest.update(table.to_csv().encode())
    return digest.hexdigest()


def sum_of_signs(u: Mapping[str, Direction]) -> Direction:
    """The gradient of TOT from those of POS and NEG."""
    return {name: positive + u["NEG"][name] for name, positive in u["POS"].items()}


def with_reference(
    samples: Sequence[Sample],
    reference: PreTrainedModel,
    label: str = "reference log-probs",
    tf32: bool = False,
) -> list[Sample]:
    """Samples with the reference model's log-probs, by the code path and the batches of the policy's.

    So a policy that still is the reference has log-ratios of exactly 0.
    """
    run = Passes(reference, samples, [], Options(), Pieces(), label)
    with exact_arithmetic(run.dtype, tf32), run.bar:
        logps = run.forward("reference", samples, [])[0]
    ends = np.cumsum([len(sample.response_ids) for sample in samples])
    return [replace(s, ref_logps=part) for s, part in zip(samples, np.split(logps, ends[:-1]), strict=True)]


class Passes:
    """The passes of one model over its samples, their batching and progress."""

    def __init__(
        self,
        model: PreTrainedModel,
        train: Sequence[Sample],
        final: Sequence[Sample],
        options: Options,
        pieces: Pieces,
        label: str,
    ) -> None:
        self.model, self.train, self.final = model, train, final
        self.options, self.pieces = options, pieces
        for samples in (train, final) if final else (train,):
            check_samples(samples, embedding_rows(model), context_length(model))
        token_scores.require_forward_mode(model)
        parameter = next(model.parameters())
        self.dtype, self.device = parameter.dtype, parameter.device
        self.tolerance = TOLERANCE[self.dtype] if options.tolerance is None else options.tolerance
        self.fixed = all(sample.role in PAIR_ROLES for sample in train)  # D is the same at every checkpoint
        passes = (3 if self._adamw_on_train else 2, 2) if final else (1, 0)  # over D and D′
        total = sum(n * s.length for n, samples in zip(passes, (train, final), strict=True) for s in samples)
        self.bar = tqdm(total=total, unit="tok", unit_scale=True, mininterval=5, desc=label)

    # ------------------------------------------------------------------------------------------ reverse: v and u

    def final_gradient(self) -> tuple[Direction, list[dict[str, Any]]]:
        """v, and a row per mini-batch of D′."""
        batches = mini_batches(self.final)

        def measure(place: int) -> tuple[list[Tensor], list[dict[str, Any]]]:
            samples = batches[place]
            gradient, nll_B = token_scores.nll_gradient(self.model, self._collate(samples), 1 / len(self.final))
            norm = float(torch.nn.utils.get_total_norm(gradient)) * len(self.final) / len(samples)
            row = {"batch": samples[0].batch, "set": "final", "component": "NLL", "segment": ALL}
            return gradient, [{**row, "n": len(samples), "loss": float(nll_B.mean()), "grad_norm": norm}]

        (v,), rows = self._accumulate("v", batches, measure, 1)
        return v, rows

    def train_gradients(
        self, v: Direction, scores: pd.DataFrame, loss: np.ndarray, random: np.random.Generator
    ) -> tuple[dict[str, Direction], list[dict[str, Any]]]:
        """u of every component of its own, and the rows of `batches.parquet` of D."""
        options, batches, n_of = self.options, mini_batches(self.train), batch_sizes(scores)
        separate = tuple(options.separate)
        gradients = Gradients(self.model, v, separate, options.sampling.temperature, self.tolerance)
        whole = len(batches) if options.norms is None else min(options.norms, len(batches))
        audited = set(random.permutation(whole)[: options.audits].tolist())
        mini_batch = self._mini(batches, scores, loss)

        def measure(place: int) -> tuple[list[Tensor], list[dict[str, Any]]]:
            mini = mini_batch(place)
            sums, rows = gradients.measure(mini, place < whole, place in audited)
            share = mini.n / int(n_of.sum())  # a mini-batch's gradient is of its own mean loss
            added = (zip(self.model.parameters(), part, strict=True) for part in sums)
            return [torch.zeros_like(p) if g is None else g.mul_(share) for part in added for p, g in part], rows

        directions, rows = self._accumulate("u", batches, measure, len(separate))
        return dict(zip(separate, directions, strict=True)), rows

    def _accumulate(
        self,
        name: str,
        batches: Sequence[Sequence[Sample]],
        measure: Callable[[int], tuple[list[Tensor], list[dict[str, Any]]]],
        count: int,
    ) -> tuple[list[Direction], list[dict[str, Any]]]:
        """`count` sums of gradients over mini-batches, and all their rows; both are stored on the way."""
        stored = self.pieces.get(name) or {"done": 0, "sum": [], "rows": []}
        total, rows = [tensor.to(self.device) for tensor in stored["sum"]], list(stored["rows"])
        for done, samples in enumerate(batches, 1):
            if done > stored["done"]:
                gradient, new = measure(done - 1)
                total = total or [torch.zeros_like(g) for g in gradient]
                torch._foreach_add_(total, gradient)
                del gradient  # or it would stay until the next one is made
                rows += new
                if done == len(batches) or self.pieces.due:
                    self.pieces.put(name, {"done": done, "sum": total, "rows": list(rows)})
            self._advance(samples, f"{name} {done}/{len(batches)}")
        names = [name for name, _ in self.model.named_parameters()]
        parts = (total[i * len(names) : (i + 1) * len(names)] for i in range(count))
        return [dict(zip(names, part, strict=True)) for part in parts], rows

    def _mini(
        self, batches: Sequence[Sequence[Sample]], scores: pd.DataFrame, loss: np.ndarray
    ) -> Callable[[int], MiniBatch]:
        masks, places = component_masks(scores, scores["weight"].to_numpy()), scores.groupby("batch").indices
        score, coefficient = scores["score"].to_numpy(np.float64), scores["coefficient"].to_numpy()
        n_of = batch_sizes(scores)

        def make(place: int) -> MiniBatch:
            samples = batches[place]
            batch = samples[0].batch
            at, n = places[batch], int(n_of[batch])
            own = coefficient[at] * (n_of.sum() / n)
            mine = {name: mask[at] for name, mask in masks.items()}
            return MiniBatch(batch, n, float(loss[at].sum() / n), self._collate(samples), score[at], own, mine)

        return make

    # --------------------------------------------------------------------------------- forward: scores and drifts

    def scores(self, v: Direction) -> pd.DataFrame:
        """Rows of D in `scores.parquet`, without coefficients."""
        directions = [v, self._preconditioned(v)] if self._adamw_on_train else [v]
        values = self.forward("scores", self.train, directions, self.options.sampling.temperature)
        frame = _scores_frame(self.train, values[0], values[1])
        frame["score"] = values[2]
        frame["score_adamw"] = values[3] if len(values) > 3 else math.nan
        return frame

    def drifts(self, u: Mapping[str, Direction]) -> pd.DataFrame:
        """Rows of D′ in `scores.parquet`: of TOT, POS and, where u has them, TOP and MID."""
        names = [name for name in u if name != "BOT"]
        directions = [u[name] for name in names]
        if self.options.scales:
            directions.append(self._preconditioned(sum_of_signs(u)))
        values = self.forward("drifts", self.final, directions)
        of = dict(zip(names, -values[2:], strict=False))
        frame = _scores_frame(self.final, values[0], values[1])
        frame["drift_TOT"] = of["POS"] + of["NEG"]
        for name in names:
            if name != "NEG":
                frame[f"drift_{name}"] = of[name]
        return frame.assign(drift_adamw=-values[-1] if self.options.scales else math.nan)

    def adamw_drift(self, u: Mapping[str, Direction]) -> np.ndarray | float:
        """How a step of AdamW on all of D moves the tokens of D itself; nan where nothing can be made of it."""
        if not self._adamw_on_train:
            return math.nan
        direction = self._preconditioned(sum_of_signs(u))
        drift: np.ndarray = -self.forward("adamw", self.train, [direction], self.options.sampling.temperature)[2]
        return drift

    @property
    def _adamw_on_train(self) -> bool:
        """Only pairs are met again, at the next checkpoint: roll-outs are fresh at each."""
        return bool(self.options.scales) and self.fixed

    def _preconditioned(self, direction: Direction) -> Direction:
        scales = self.options.scales or {}
        return {name: tensor / scales[name].to(tensor.device) for name, tensor in direction.items()}

    def forward(
        self,
        name: str,
        samples: Sequence[Sample],
        directions: Sequence[Direction],
        temperature: float = 1.0,
    ) -> np.ndarray:
        """log π(y_t), max_y log π(y) and ⟨direction, ∇log π(y_t)⟩ of every response token, samples in their order.

        Chunks are of similar length, whatever the mini-batches.
        """
        parts: list[Tensor] = [torch.empty(0)] * len(samples)
        chunks = self._chunks(samples)
        for done, chunk in enumerate(chunks, 1):
            of_chunk = [samples[i] for i in chunk]
            piece = self.pieces.piece(f"{name} {chunk[0]}", partial(self._forward, of_chunk, directions, temperature))
            ends = np.cumsum([len(s.response_ids) for s in of_chunk]).tolist()
            for i, part in zip(chunk, torch.tensor_split(piece, ends[:-1], dim=1), strict=True):
                parts[i] = part
            self._advance(of_chunk, f"{name} {done}/{len(chunks)}")
        return torch.cat(parts, 1).numpy()

    def _forward(self, samples: Sequence[Sample], directions: Sequence[Direction], temperature: float) -> Tensor:
        batch = self._collate(samples)
        scores = token_scores.score_tokens(self.model, batch, directions, temperature)
        rows = [scores.logps_BT, scores.argmax_logps_BT, *scores.scores_KBT]
        return torch.stack([row_BT[batch.loss_mask_BT] for row_BT in rows]).cpu()

    def _chunks(self, samples: Sequence[Sample]) -> list[list[int]]:
        """Samples of similar length; together at most CHUNK_TOKENS padded tokens, or one sample."""
        lengths = [sample.length for sample in samples]
        cost = call_cost(list(self.model.parameters()))
        return least_padding(range(len(lengths)), lengths, cost, CHUNK_TOKENS)

    def _collate(self, samples: Sequence[Sample]) -> Batch:
        pad = self.model.config.pad_token_id or 0  # any id: masks come from the lengths
        return collate([s.prompt_ids for s in samples], [s.response_ids for s in samples], pad).to(self.device)

    def _advance(self, samples: Sequence[Sample], what: str) -> None:
        self.bar.set_postfix_str(what, refresh=False)
        self.bar.update(sum(sample.length for sample in samples))


def mini_batches(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Samples of the same `batch`, in their order."""
    return [list(group) for _, group in groupby(samples, key=lambda sample: sample.batch)]


def _scores_frame(samples: Sequence[Sample], logps: np.ndarray, argmax_logps: np.ndarray) -> pd.DataFrame:
    """A row per response token, samples in their order, without scores."""
    lengths = [len(sample.response_ids) for sample in samples]
    columns: dict[str, Any] = {
        name: np.repeat(np.array([getattr(s, name) for s in samples], dtype=object), lengths)
        for name in ("sample_id", "batch", "role")
    }
    columns["batch"] = columns["batch"].astype(np.int64)
    columns["position"] = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
    columns["token_id"] = np.concatenate([np.asarray(s.response_ids, dtype=np.int32) for s in samples])
    columns |= {"logprob": logps, "argmax_logprob": argmax_logps}
    arrays = {"ref_logprob": "ref_logps", "advantage": "advantages", "raw_advantage": "raw_advantages"}
    for column, name in arrays.items():
        parts = [getattr(sample, name) for sample in samples]
        filled = (np.full(n, np.nan) if part is None else part for part, n in zip(parts, lengths, strict=True))
        columns[column] = np.concatenate(list(filled))
    if any(sample.reward is not None for sample in samples):
        columns["reward"] = np.repeat(np.array([sample.reward for sample in samples], dtype=np.float64), lengths)
    return pd.DataFrame(columns)

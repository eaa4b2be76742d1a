"""The probe of one model: exact gradient alignment of any objective and component, as three tables.

    G(L; θ) = ⟨v, ∇L(D; θ)⟩ = −Σ_t c_t s_t,   v = Ê_{D′}[−∇log π(y′|x′)],   s_t = ⟨v, ∇log π(y_t | y_<t, x)⟩   (Eq. 3)

Three passes: v from one backward over D′; s_t of every token of D by forward mode; gradient norms and dot products per
layer by reverse mode, which also checks the forward mode in every mini-batch. Memory: parameters, v, one gradient and
the activations of one mini-batch. The stages that probe checkpoints on disk are in `offline` and `online`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
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

from po_dynamics.dynamics.coefficients import batch_sizes, component_masks, reweight
from po_dynamics.dynamics.tables import Tables
from po_dynamics.models.batches import Batch, collate, least_padding
from po_dynamics.models.loading import context_length
from po_dynamics.models.tokenizers import embedding_rows
from po_dynamics.objectives.declaration import Objective
from po_dynamics.probe import token_scores
from po_dynamics.probe.gradients import DEFAULT_SEPARATE, TOLERANCE, Gradients, MiniBatch, batches_frame, norms
from po_dynamics.probe.numerics import exact_arithmetic
from po_dynamics.probe.samples import Sample, check_samples, samples_frame
from po_dynamics.probe.token_scores import Direction, call_cost
from po_dynamics.storage.pieces import Pieces

CHUNK_TOKENS = 2048  # of the forward-mode pass, at least: it stores no activations, so more than a mini-batch fits


class Options(NamedTuple):
    """How to probe; the defaults suit any objective."""

    temperature: float = 1.0  # of log π on D; D′ always has 1
    # Components that get a gradient of their own in reverse mode, and so norms, cosines and segments: (TOT), (POS, NEG)
    # or (POS, NEG, TOP, MID, BOT); None: the second offline, the first online. All have token scores in any case.
    separate: Sequence[str] | None = None
    audits: int = 2  # mini-batches, chosen at random, in which every component is also computed by one plain backward
    tolerance: float | None = None  # relative, of forward, reverse and audit; None: 1e-3 (float32), 1e-9 (float64)
    scales: Mapping[str, Tensor] | None = None  # AdamW's P by parameter, for ⟨v, P⁻¹∇L⟩ (`dot_adamw`)
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
    """Token scores, gradient norms and dot products of `objective` on D (`train`) towards D′ (`final`).

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
    run = Passes(model, train, final, options.temperature, pieces or Pieces(), label)
    with exact_arithmetic(run.dtype, options.tf32), run.bar:
        direction, final_rows = run.direction()
        directions = [direction]
        if options.scales is not None:
            directions.append({name: v / options.scales[name] for name, v in direction.items()})
        tolerance = TOLERANCE[run.dtype] if options.tolerance is None else options.tolerance
        separate = tuple(options.separate or DEFAULT_SEPARATE[objective.family])
        gradients = Gradients(model, directions, separate, options.temperature, tolerance)
        scores = run.score([direction])
        terms = reweight(scores, objective, step)
        scores = scores.assign(coefficient=terms.coefficient, weight=terms.weight)
        random = np.random.default_rng([options.seed, step])
        rows = run.measure(gradients, scores, terms.loss, options.audits, random)
    about = _metadata(objective, step, norms(direction), scores, options.temperature, run.dtype)
    return Tables(samples_frame([*train, *final]), scores, batches_frame([*final_rows, *rows]), about)


def _metadata(
    objective: Objective,
    step: int,
    v_norms: Mapping[str, float],
    scores: pd.DataFrame,
    temperature: float,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """What the tables are of; see `dynamics.tables.Tables`. The id is of the objective, ‖v‖ and every score."""
    what = repr((objective.name, dict(objective.parameters), step, v_norms))
    return {
        "id": hashlib.sha256(what.encode() + scores.to_csv().encode()).hexdigest(),
        "final_set": "",
        "learning_rate": None,
        "family": objective.family,
        "objective": objective.name,
        "parameters": dict(objective.parameters),
        "step": step,
        "temperature": temperature,
        "precision": str(dtype).removeprefix("torch."),
        "v_norms": v_norms,
        "layers": sum(name.startswith("layer.") for name in v_norms),
    }


def with_reference(
    samples: Sequence[Sample],
    reference: PreTrainedModel,
    label: str = "reference log-probs",
    tf32: bool = False,
) -> list[Sample]:
    """Samples with the reference model's log-probs, by the code path and the batches of the policy's.

    So a policy that still is the reference has log-ratios of exactly 0.
    """
    run = Passes(reference, samples, [], 1.0, Pieces(), label)
    with exact_arithmetic(run.dtype, tf32), run.bar:
        logps = run.score([])["logprob"].to_numpy()
    ends = np.cumsum([len(sample.response_ids) for sample in samples])
    return [replace(s, ref_logps=part) for s, part in zip(samples, np.split(logps, ends[:-1]), strict=True)]


class Passes:
    """The three passes of one model over its samples, their batching and progress."""

    def __init__(
        self,
        model: PreTrainedModel,
        train: Sequence[Sample],
        final: Sequence[Sample],
        temperature: float,
        pieces: Pieces,
        label: str,
    ) -> None:
        self.model, self.train, self.final = model, train, final
        self.temperature, self.pieces = temperature, pieces
        for samples in (train, final) if final else (train,):
            check_samples(samples, embedding_rows(model), context_length(model))
        token_scores.require_forward_mode(model)
        parameter = next(model.parameters())
        self.dtype, self.device = parameter.dtype, parameter.device
        total = sum(s.length for s in final) + (2 if final else 1) * sum(s.length for s in train)
        self.bar = tqdm(total=total, unit="tok", unit_scale=True, mininterval=5, desc=label)

    def direction(self) -> tuple[Direction, list[dict[str, Any]]]:
        """v, and a row per mini-batch of D′."""
        batches = mini_batches(self.final)
        stored = self.pieces.get("v") or {"done": 0, "sum": [], "rows": []}
        total, rows = [tensor.to(self.device) for tensor in stored["sum"]], list(stored["rows"])
        for done, samples in enumerate(batches, 1):
            if done > stored["done"]:
                gradient, nll_B = token_scores.nll_gradient(self.model, self._collate(samples), 1 / len(self.final))
                norm = float(torch.nn.utils.get_total_norm(gradient)) * len(self.final) / len(samples)
                row = {"batch": samples[0].batch, "set": "final", "component": "NLL", "segment": "all"}
                rows.append({**row, "n": len(samples), "loss": float(nll_B.mean()), "grad_norm": norm})
                total = total or [torch.zeros_like(g) for g in gradient]
                torch._foreach_add_(total, gradient)
                if done == len(batches) or self.pieces.due:
                    self.pieces.put("v", {"done": done, "sum": total, "rows": list(rows)})
            self._advance(samples, f"D′ {done}/{len(batches)}")
        return dict(zip((name for name, _ in self.model.named_parameters()), total, strict=True)), rows

    def score(self, directions: Sequence[Direction]) -> pd.DataFrame:
        """`scores.parquet` without coefficients; chunks are of similar length, whatever the mini-batches."""
        parts: list[Tensor] = [torch.empty(0)] * len(self.train)
        chunks = self._chunks()
        for done, chunk in enumerate(chunks, 1):
            samples = [self.train[i] for i in chunk]
            piece = self.pieces.piece(f"score {chunk[0]}", partial(self._score, samples, directions))
            ends = np.cumsum([len(s.response_ids) for s in samples]).tolist()
            for i, part in zip(chunk, torch.tensor_split(piece, ends[:-1], dim=1), strict=True):
                parts[i] = part
            self._advance(samples, f"scores {done}/{len(chunks)}")
        return _scores_frame(self.train, torch.cat(parts, 1).numpy())

    def _score(self, samples: Sequence[Sample], directions: Sequence[Direction]) -> Tensor:
        batch = self._collate(samples)
        scores = token_scores.score_tokens(self.model, batch, directions, self.temperature)
        rows = [scores.logps_BT, scores.argmax_logps_BT, *scores.scores_KBT]
        return torch.stack([row_BT[batch.loss_mask_BT] for row_BT in rows]).cpu()

    def _chunks(self) -> list[list[int]]:
        """Samples of similar length; at most as many padded tokens as the largest mini-batch has, or CHUNK_TOKENS."""
        padded = (len(samples) * max(s.length for s in samples) for samples in mini_batches(self.train))
        lengths = [sample.length for sample in self.train]
        cost = call_cost(list(self.model.parameters()))
        return least_padding(range(len(lengths)), lengths, cost, max(CHUNK_TOKENS, *padded))

    def measure(
        self, gradients: Gradients, scores: pd.DataFrame, loss: np.ndarray, audits: int, random: np.random.Generator
    ) -> list[dict[str, Any]]:
        """Rows of `batches.parquet` of D."""
        batches, rows = mini_batches(self.train), []
        audited = set(random.permutation(len(batches))[:audits].tolist())
        for place, mini in enumerate(self._mini(batches, scores, loss)):
            piece = f"batch {mini.batch}"
            rows += self.pieces.piece(piece, partial(gradients.rows, mini, place in audited))
            self._advance(batches[place], f"gradients {place + 1}/{len(batches)}")
        return rows

    def _mini(self, batches: Sequence[Sequence[Sample]], scores: pd.DataFrame, loss: np.ndarray) -> Iterator[MiniBatch]:
        masks, places = component_masks(scores, scores["weight"].to_numpy()), scores.groupby("batch").indices
        score, coefficient = scores["score"].to_numpy(np.float64), scores["coefficient"].to_numpy()
        n_of = batch_sizes(scores)
        for samples in batches:
            batch = samples[0].batch
            at, n = places[batch], int(n_of[batch])
            own = coefficient[at] * (n_of.sum() / n)
            mine = {name: mask[at] for name, mask in masks.items()}
            yield MiniBatch(batch, n, float(loss[at].sum() / n), self._collate(samples), score[at], own, mine)

    def _collate(self, samples: Sequence[Sample]) -> Batch:
        pad = self.model.config.pad_token_id or 0  # any id: masks come from the lengths
        return collate([s.prompt_ids for s in samples], [s.response_ids for s in samples], pad).to(self.device)

    def _advance(self, samples: Sequence[Sample], what: str) -> None:
        self.bar.set_postfix_str(what, refresh=False)
        self.bar.update(sum(sample.length for sample in samples))


def mini_batches(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Samples of the same `batch`, in their order."""
    return [list(group) for _, group in groupby(samples, key=lambda sample: sample.batch)]


def _scores_frame(samples: Sequence[Sample], values: np.ndarray) -> pd.DataFrame:
    """A row per response token, samples in their order; `values` are log-prob, argmax log-prob and, if any, score."""
    lengths = [len(sample.response_ids) for sample in samples]
    columns: dict[str, Any] = {
        name: np.repeat(np.array([getattr(s, name) for s in samples], dtype=object), lengths)
        for name in ("sample_id", "batch", "role")
    }
    columns["batch"] = columns["batch"].astype(np.int64)
    columns["position"] = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
    columns["token_id"] = np.concatenate([np.asarray(s.response_ids, dtype=np.int32) for s in samples])
    columns |= {"score": values[2]} if len(values) > 2 else {}
    columns |= {"logprob": values[0], "argmax_logprob": values[1]}
    arrays = {"ref_logprob": "ref_logps", "advantage": "advantages", "raw_advantage": "raw_advantages"}
    for column, name in arrays.items():
        parts = [getattr(sample, name) for sample in samples]
        filled = (np.full(n, np.nan) if part is None else part for part, n in zip(parts, lengths, strict=True))
        columns[column] = np.concatenate(list(filled))
    if any(sample.reward is not None for sample in samples):
        columns["reward"] = np.repeat(np.array([sample.reward for sample in samples], dtype=np.float64), lengths)
    return pd.DataFrame(columns)

"""Probing the checkpoints of a run: what both families share. D comes from `offline` or `online`."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig

from po_dynamics.dynamics import tables
from po_dynamics.errors import InputError
from po_dynamics.models.loading import check_folder, context_length, load_model
from po_dynamics.models.tokenizers import load_tokenizer
from po_dynamics.objectives.declaration import Objective
from po_dynamics.probe.passes import Options, Sampling, probe
from po_dynamics.probe.samples import Sample, check_samples, read_final
from po_dynamics.settings.probe import Probe
from po_dynamics.storage.atomic import atomic_folder, remove
from po_dynamics.storage.checkpoints import read_scales
from po_dynamics.storage.pieces import Pieces
from po_dynamics.storage.state import identity, open_state

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = {"fp32": "float32", "fp64": "float64", "bf16": "bfloat16"}
# What must be equal in the configurations of checkpoints and reference.
_SHAPE = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "tie_word_embeddings")

Draw = Callable[[Path], list[Sample]]  # a checkpoint's folder → D


@dataclass(frozen=True)
class ProbedRun:
    """Checkpoints of a run, what D and D′ are drawn from, and how to probe."""

    checkpoints: Path  # with folders step-<t>
    steps: Sequence[int]  # t of those to probe
    reference: Path  # the run's initial model; its log-probs are computed here, by the code path of the policy's
    preferences: Path  # tokens of pairs offline, of prompts online: where D is drawn from
    final_responses: Path  # where D′ is drawn from
    output: Path  # gets step-<t>/{samples,scores,batches}.parquet
    state: Path  # finished checkpoints and pieces of the one in work; removed on success
    objective: Objective
    settings: Probe  # `probe` of the configuration
    training: Mapping[str, Any]  # `models.<model>.offline` (only `max_length` is read) or `.online`
    final_set: str = "heldout"

    @property
    def batch_size(self) -> int:
        """Samples of a mini-batch, of D and of D′."""
        size: int = getattr(self.settings.batch_size, self.objective.family)
        return size

    def load(self, folder: Path) -> PreTrainedModel:
        """A model in the precision of the probe, with the attention that forward mode needs."""
        return load_model(folder, attention="eager", dtype=DTYPES[self.settings.precision])


def open_inputs(run: ProbedRun) -> tuple[list[Path], list[Sample]]:
    """The checkpoints' folders and D′, both checked."""
    folders = [run.checkpoints / f"step-{step}" for step in run.steps]
    if missing := [folder for folder in folders if not folder.is_dir()]:
        there = ", ".join(sorted(path.name for path in run.checkpoints.glob("step-*"))) or "none"
        raise InputError(f"{missing[0]} does not exist (checkpoints there: {there})")
    check_folders(folders, run.reference)
    tokenizer, settings = load_tokenizer(run.reference), run.settings
    config = AutoConfig.from_pretrained(run.reference)
    rows = max(len(tokenizer), config.vocab_size)  # a model may have rows, and so write ids, that are no token's
    final = read_final(run.final_responses, tokenizer, rows, settings.samples.final, settings.seed, run.batch_size)
    check_samples(final, rows, context_length(config))
    return folders, final


def check_folders(checkpoints: Sequence[Path], reference: Path) -> None:
    """InputError unless all folders hold readable weights of one architecture and one vocabulary."""
    for folder in [reference, *checkpoints]:
        check_folder(folder)
    expected, words = _shape(reference), _vocabulary(reference)
    for folder in checkpoints:
        shape = _shape(folder)
        for key, value in expected.items():
            if shape[key] != value:
                raise InputError(
                    f"{folder}: {key} is {shape[key]!r}, but {value!r} in {reference}: "
                    "the checkpoint is of another model than the samples"
                )
        if _vocabulary(folder) != words:
            raise InputError(f"{folder}: its tokenizer differs from that of {reference}, which makes the samples")


def _shape(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {key: config.get(key) for key in _SHAPE}


def _vocabulary(folder: Path) -> Any:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None  # a slow tokenizer: token ids are still checked against the vocabulary's size
    content = json.loads(path.read_text(encoding="utf-8"))
    return content.get("model", {}).get("vocab"), content.get("added_tokens")


def signature_of(run: ProbedRun, others: Sequence[Path]) -> dict[str, Any]:
    """What decides the result, to tell whether state on disk is of this very run."""
    inputs = [run.preferences, run.final_responses, run.reference, *others]
    return {
        "objective": run.objective.name,
        "parameters": run.objective.parameters,
        "settings": run.settings.resolved(),
        "inputs": {str(path): identity(path) for path in inputs},
    }


def probe_all(
    run: ProbedRun,
    folders: Sequence[Path],
    final: Sequence[Sample],
    draw: Draw,
    signature: Mapping[str, Any],
    sampling: Sampling = Sampling(),  # noqa: B008 - immutable
) -> None:
    """Finished checkpoints wait in the state's folder: Snakemake deletes the outputs of a failed job."""
    open_state(run.state, signature)
    for folder in folders:
        if not (run.state / folder.name).is_dir():
            _probe_one(run, folder, draw(folder), final, sampling)
    for folder in folders:
        with atomic_folder(run.output / folder.name) as temporary:
            for file in (run.state / folder.name).iterdir():
                shutil.copy2(file, temporary / file.name)
    remove(run.state)


def _probe_one(
    run: ProbedRun, folder: Path, train: Sequence[Sample], final: Sequence[Sample], sampling: Sampling
) -> None:
    settings, model = run.settings, run.load(folder)
    scales = read_scales(folder, model)
    options = Options(
        sampling=sampling,
        separate=getattr(settings.separate, run.objective.family),
        norms=None if settings.norms is None else math.ceil(settings.norms / run.batch_size),
        audits=settings.audits,
        tolerance=settings.tolerance,
        scales=scales if settings.predict else None,
        seed=settings.seed,
    )
    pieces = Pieces(run.state / f".{folder.name}.pieces", key=_digest(train, final))
    step = int(folder.name.removeprefix("step-"))
    result = probe(model, train, final, run.objective, step, options, pieces, f"probe {folder.name}")
    result.metadata["final_set"] = run.final_set
    with atomic_folder(run.state / folder.name) as temporary:
        tables.write(result, temporary)
    pieces.close()


def _digest(*samples: Sequence[Sample]) -> str:
    """Hash of the samples, which together with the state's signature decide the pieces of a checkpoint."""
    digest = hashlib.sha256()
    for sample in (sample for part in samples for sample in part):
        digest.update(
            repr((sample.sample_id, sample.batch, list(sample.prompt_ids), list(sample.response_ids))).encode()
        )
        for values in (sample.ref_logps, sample.advantages):
            digest.update(b"" if values is None else values.tobytes())
    return digest.hexdigest()

"""Stages: probe the checkpoints of a run, offline on its preference pairs or online on fresh roll-outs."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from po_dynamics.dynamics import tables
from po_dynamics.errors import InputError
from po_dynamics.objectives.declaration import Objective
from po_dynamics.probe.inputs import check_folders, context_length, load_policy, load_tokenizer, read_optimizer
from po_dynamics.probe.passes import probe, with_reference
from po_dynamics.probe.samples import Sample, check_samples, read_final, read_pairs, rollout_samples
from po_dynamics.settings.probe import Probe
from po_dynamics.storage.atomic import atomic_folder, remove
from po_dynamics.storage.pieces import Ledger
from po_dynamics.storage.state import open_state

Draw = Callable[[Path], list[Sample]]  # a checkpoint's folder → D


def probe_offline(
    checkpoints: Path,
    steps: Sequence[int],
    reference: Path,
    preferences: Path,
    final_responses: Path,
    output: Path,
    state: Path,
    objective: Objective,
    settings: Mapping[str, Any] | Probe,
    training: Mapping[str, Any],
    final_set: str = "heldout",
) -> None:
    """Writes `output/step-<t>/{samples,scores,batches}.parquet` for the given steps of `checkpoints/step-<t>`.

    Args:
        reference: the run's initial model; its log-probs are computed here, by the code path of the policy's.
        preferences, final_responses: where D and D′ are drawn from.
        state: finished checkpoints and pieces of the one in work; removed on success.
        objective: an offline one.
        settings: `probe` of the configuration.
        training: `models.<model>.offline`; only `max_length` is read.

    Raises:
        InputError: before any long work where a folder, a table or a setting is unusable.
    """
    settings = Probe.of(settings, "probe")
    folders = _folders(checkpoints, steps)
    check_folders(folders, reference)
    n, seed, batch_size = settings.samples, settings.seed, settings.batch_size.offline
    tokenizer = load_tokenizer(reference)
    final = read_final(final_responses, tokenizer, n, seed, batch_size)
    reference_model = load_policy(reference, settings.precision)
    context = context_length(reference_model)
    max_length = min(training["max_length"], context or training["max_length"])
    pairs = read_pairs(preferences, tokenizer, n, seed, batch_size, max_length)
    check_samples(final, len(tokenizer), context)
    signature = _signature(
        [preferences, final_responses], [reference, *folders], objective.name, objective.parameters, settings.resolved()
    )
    train: list[Sample] = []

    def draw(_: Path) -> list[Sample]:
        if not train:
            train.extend(with_reference(pairs, reference_model))
        return train

    about = {"objective": objective, "final_set": final_set, "temperature": 1.0}
    _probe_all(folders, final, draw, output, state, settings, signature | {"max_length": max_length}, about)


def probe_online(
    checkpoints: Path,
    steps: Sequence[int],
    reference: Path,
    reward: str | Path,
    preferences: Path,
    final_responses: Path,
    output: Path,
    state: Path,
    objective: Objective,
    settings: Mapping[str, Any] | Probe,
    training: Mapping[str, Any],
    final_set: str = "heldout",
) -> None:
    """As `probe_offline`, with D rolled out at each checkpoint and scored by `reward` and the checkpoint's own critic.

    `preferences` gives the prompts; `training` is `models.<model>.online`.
    """
    from po_dynamics.ppo.experience import Sources
    from po_dynamics.ppo.probe_rollouts import fresh_rollouts

    settings = Probe.of(settings, "probe")
    folders = _folders(checkpoints, steps)
    check_folders(folders, reference)
    n, seed, batch_size = settings.samples, settings.seed, settings.batch_size.online
    tokenizer = load_tokenizer(reference)
    final = read_final(final_responses, tokenizer, n, seed, batch_size)
    check_samples(final, len(tokenizer), context_length(load_policy(reference, device="cpu")))
    inputs = [preferences, final_responses]
    models = [reference, *folders, *([reward] if isinstance(reward, Path) else [])]
    signature = _signature(inputs, models, objective.name, objective.parameters, settings.resolved())

    def draw(folder: Path) -> list[Sample]:
        sources = Sources(folder, reward, reference, preferences)
        return rollout_samples(fresh_rollouts(sources, n, training, seed, objective), batch_size)

    temperature = training.get("temperature", 1.0)
    about = {"objective": objective, "final_set": final_set, "temperature": temperature}
    _probe_all(folders, final, draw, output, state, settings, signature | {"training": dict(training)}, about)


def _probe_all(
    folders: Sequence[Path],
    final: Sequence[Sample],
    draw: Draw,
    output: Path,
    state: Path,
    settings: Probe,
    signature: Mapping[str, Any],
    about: Mapping[str, Any],
) -> None:
    """Finished checkpoints wait in `state`: Snakemake deletes the outputs of a failed job."""
    open_state(state, signature)
    for folder in folders:
        if not (state / folder.name).is_dir():
            _probe_one(folder, draw(folder), final, state, settings, about)
    for folder in folders:
        with atomic_folder(output / folder.name) as temporary:
            for file in (state / folder.name).iterdir():
                shutil.copy2(file, temporary / file.name)
    remove(state)


def _probe_one(
    folder: Path,
    train: Sequence[Sample],
    final: Sequence[Sample],
    state: Path,
    settings: Probe,
    about: Mapping[str, Any],
) -> None:
    model = load_policy(folder, settings.precision)
    scales, learning_rate = read_optimizer(folder, model)
    ledger = Ledger(state / f".{folder.name}.pieces", key=_digest(train, final))
    result = probe(
        model,
        train,
        final,
        about["objective"],
        _step(folder),
        temperature=about["temperature"],
        separate=settings.separate,
        audits=settings.audits,
        tolerance=settings.tolerance,
        scales=scales,
        seed=settings.seed,
        ledger=ledger,
        metadata={"final_set": about["final_set"], "learning_rate": learning_rate},
        label=f"probe {folder.name}",
    )
    with atomic_folder(state / folder.name) as temporary:
        tables.write(result, temporary)
    ledger.close()


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _folders(checkpoints: Path, steps: Sequence[int]) -> list[Path]:
    folders = [checkpoints / f"step-{step}" for step in steps]
    if missing := [folder for folder in folders if not folder.is_dir()]:
        there = ", ".join(sorted(path.name for path in checkpoints.glob("step-*"))) or "none"
        raise InputError(f"{missing[0]} does not exist (checkpoints there: {there})")
    return folders


def _digest(*samples: Sequence[Sample]) -> str:
    """What decides the pieces of one checkpoint, whose files the state's signature covers."""
    digest = hashlib.sha256()
    for sample in (sample for part in samples for sample in part):
        digest.update(
            repr((sample.sample_id, sample.batch, list(sample.prompt_ids), list(sample.response_ids))).encode()
        )
        for values in (sample.ref_logps, sample.advantages):
            digest.update(b"" if values is None else values.tobytes())
    return digest.hexdigest()


def _signature(files: Sequence[Path], models: Sequence[Path], *settings: Any) -> dict[str, Any]:
    return {"settings": settings, "files": [[str(f), *_identity(f)] for f in files] + [_weights(m) for m in models]}


def _identity(file: Path) -> Iterator[Any]:
    yield hashlib.sha256(file.read_bytes()).hexdigest()


def _weights(folder: Path) -> list[Any]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [str(folder), *([str(f.relative_to(folder)), os.stat(f).st_size, os.stat(f).st_mtime_ns] for f in files)]

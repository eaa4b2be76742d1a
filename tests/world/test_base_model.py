"""Pre-training: it learns, resumes bit-identically after kills, and refuses what it cannot use."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from po_dynamics.errors import InputError
from po_dynamics.world import base_model, language
from transformers import AutoModelForCausalLM, AutoTokenizer

SETTINGS = {
    "source": "world",
    "hidden_size": 16,
    "layers": 1,
    "heads": 2,
    "intermediate_size": 32,
    "max_length": 96,
    "steps": 60,
    "batch_size": 8,
    "learning_rate": 3e-3,
    "seed": 0,
    "save_every": 7,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    import random

    folder = tmp_path_factory.mktemp("world")
    documents = list(language.write_documents(300, random.Random(0)))
    pq.write_table(pa.table({"text": documents}), folder / "pretraining.parquet")
    language.train_tokenizer(documents, folder / "tokenizer")
    return folder


def run(world: Path, folder: Path, settings=SETTINGS) -> Path:
    torch.set_num_threads(1)
    base_model.pretrain_base(
        world / "pretraining.parquet", world / "tokenizer", folder / "base", folder / "state", settings
    )
    return folder / "base"


@pytest.fixture(scope="module")
def base(world, tmp_path_factory):
    return run(world, tmp_path_factory.mktemp("uninterrupted"))


def same(one: Path, other: Path) -> None:
    files = sorted(path.name for path in one.iterdir())
    assert files == sorted(path.name for path in other.iterdir())
    for name in files:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_it_learns_and_saves_a_complete_model(base):
    log = pd.read_csv(base / "training.csv")
    assert log.step.tolist() == list(range(1, 61))
    assert log.loss[:3].mean() > 5.0  # log 199 = 5.3 nats
    assert log.loss[-5:].mean() < 4.2
    assert log.learning_rate.max() == pytest.approx(3e-3)
    assert log.learning_rate.iloc[-1] < 4e-4
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    assert model.config.vocab_size == len(tokenizer)
    assert (model.config.pad_token_id, model.config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.model_max_length == 96
    assert tokenizer.chat_template
    assert not (base.parent / "state").exists()


def test_loss_is_the_mean_over_all_tokens_of_the_documents(base):
    model = AutoModelForCausalLM.from_pretrained(base)
    documents = [[5, 6, 7, 1], [8, 9, 1]]
    ids_BL, labels_BT = base_model.collate_documents(documents, pad_id=0)
    assert ids_BL.tolist() == [[5, 6, 7, 1], [8, 9, 1, 0]]
    assert labels_BT.tolist() == [[6, 7, 1], [9, 1, base_model.IGNORED]]
    steps = base_model.Run(model, torch.optim.AdamW(model.parameters(), lr=0.0), None, documents, 0)
    expected = 0.0
    for ids in documents:
        logps = model(torch.tensor([ids])).logits[0].detach().log_softmax(-1)
        expected -= sum(float(logps[t, ids[t + 1]]) for t in range(len(ids) - 1))
    scheduler = torch.optim.lr_scheduler.LambdaLR(steps.optimizer, lambda step: 1.0)
    values = base_model._step(steps._replace(schedule=scheduler), [0, 1], 1, base)
    assert values["tokens"] == 5
    assert values["loss"] == pytest.approx(expected / 5, rel=1e-5)


def test_seed_decides(world, base, tmp_path):
    same(run(world, tmp_path / "same"), base)
    other = run(world, tmp_path / "other", {**SETTINGS, "seed": 1})
    assert (other / "model.safetensors").read_bytes() != (base / "model.safetensors").read_bytes()


@pytest.mark.e2e
def test_killed_at_random_points_it_ends_the_same(world, base, tmp_path):
    """SIGKILL and SIGTERM at whatever point they hit, then to the end."""
    log, statuses = tmp_path / "state/training.csv", []
    for target, number in ((3, signal.SIGKILL), (25, signal.SIGTERM), (44, signal.SIGKILL)):
        process = multiprocessing.get_context("fork").Process(target=run, args=(world, tmp_path))
        process.start()
        while process.is_alive() and (not log.exists() or log.read_bytes().count(b"\n") - 1 < target):
            time.sleep(0.001)
        os.kill(process.pid, number)
        process.join(timeout=60)
        statuses.append(process.exitcode)
        assert not (tmp_path / "base").exists()
    assert statuses == [-signal.SIGKILL, 143, -signal.SIGKILL]
    same(run(world, tmp_path), base)


def test_sigterm_saves_first(world, tmp_path, monkeypatch):
    step = base_model._step

    def terminated(run, rows, number, state):
        if number == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(run, rows, number, state)

    monkeypatch.setattr(base_model, "_step", terminated)
    with pytest.raises(SystemExit) as stop:
        run(world, tmp_path)
    assert stop.value.code == 143
    assert torch.load(tmp_path / "state/state.pt", weights_only=True)["step"] == 10
    assert not (tmp_path / "base").exists()


def test_other_settings_start_afresh(world, base, tmp_path, monkeypatch, capsys):
    def interrupted(run, state, step):
        raise KeyboardInterrupt

    save = base_model._save
    monkeypatch.setattr(
        base_model, "_save", lambda run, state, step: save(run, state, step) or interrupted(run, state, step)
    )
    with pytest.raises(KeyboardInterrupt):
        run(world, tmp_path, {**SETTINGS, "seed": 5})
    monkeypatch.setattr(base_model, "_save", save)
    same(run(world, tmp_path), base)
    assert "starting afresh" in capsys.readouterr().out


def test_non_finite_loss_names_step_and_documents(world, tmp_path, monkeypatch):
    step = base_model._step

    def poisoned(run, rows, number, state):
        if number == 9:
            with torch.no_grad():
                run.model.get_output_embeddings().weight[0] = float("nan")
        return step(run, rows, number, state)

    monkeypatch.setattr(base_model, "_step", poisoned)
    with pytest.raises(InputError, match=r"the loss is nan at step 9 \(sample ids: \d+.*state\.pt"):
        run(world, tmp_path)
    assert torch.load(tmp_path / "state/state.pt", weights_only=True)["step"] == 7
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "'base.hidden_size' is 16; it must be a multiple of heads, 3"),
        ({"steps": 0}, "'base.steps' is 0; it must be at least 1"),
        ({"max_length": 12}, r"pretraining\.parquet: document \d+ has \d+ tokens, more than .* max_length = 12"),
    ],
)
def test_bad_settings_are_refused_before_training(world, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        run(world, tmp_path, {**SETTINGS, **change})
    assert not (tmp_path / "state").exists()


def test_missing_data_is_named(world, tmp_path):
    with pytest.raises(InputError, match=r"absent\.parquet does not exist"):
        base_model.pretrain_base(
            tmp_path / "absent.parquet", world / "tokenizer", tmp_path / "base", tmp_path / "state", SETTINGS
        )

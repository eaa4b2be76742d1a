"""Supervised fine-tuning: what is trained on, exact resume, precision, bad input."""

import json
import math
import random
import shutil
import signal

import pandas as pd
import pytest
import torch
import toy
from po_dynamics.data.order import ShuffledRows
from po_dynamics.errors import InputError
from po_dynamics.models.loading import load_model
from po_dynamics.models.tokenizers import NEW_PAD, load_tokenizer, prepare_tokenizer, read_tokenizer
from po_dynamics.settings.training import Sft
from po_dynamics.storage import checkpoints, state
from po_dynamics.training import arguments, sft
from safetensors.torch import load_file
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXMLP

SETTINGS = {
    "max_steps": 8, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-2, "seed": 0, "save_every": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft")
    toy.tiny_folder(folder / "base", tokenizer=toy.tiny_tokenizer(pad=None), vocab=37, dropout=0.1)
    toy.write_tokens(toy.write_sft(folder / "sft.parquet"), folder / "base", "sft")
    return folder


def train(inputs, folder, **changes):
    sft.train_sft(inputs / "base", inputs / "sft.arrow", folder / "sft", folder / "state", SETTINGS | changes)


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    import trl  # so that every forked child has it  # noqa: F401

    assert toy.in_child(lambda: train(inputs, folder)) == 0
    return folder


def test_output(inputs, whole):
    tokenizer, model = load_tokenizer(whole / "sft"), load_model(whole / "sft", device="cpu")
    assert tokenizer.pad_token == NEW_PAD
    assert model.dtype == torch.float32
    log = pd.read_csv(whole / "sft/training.csv")
    assert log.columns[0] == "step"
    assert log["step"].tolist() == list(range(1, 9))
    assert log["loss"].iloc[-1] < log["loss"].iloc[0]
    summary = json.loads((whole / "sft/training.json").read_text())
    assert summary == {"steps": 8, "global_batch": 4, "max_length": 128, "rows": 24, "cut": 0, "dropped": 0}
    assert not (whole / "state").exists()


def test_first_loss_is_the_mean_nll_of_the_completion_tokens(inputs, whole):
    """Over the whole global batch, each token once: the textbook quantity, from a separate code path."""
    model = load_model(inputs / "base", device="cpu")
    prepare_tokenizer(read_tokenizer(inputs / "base"), model)  # a row for the pad token
    rows = sft.Examples(inputs / "sft.arrow", 128, "completion")
    order = ShuffledRows(rows, 32, 0, [len(row["input_ids"]) for row in rows], 4)
    total, count = 0.0, 0
    for i in range(4):
        ids, labels = order[i]["input_ids"], order[i]["labels"]
        logps = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        for place in range(1, len(ids)):
            if labels[place] != sft.IGNORED:
                total, count = total - logps[place - 1, ids[place]].item(), count + 1
    assert pd.read_csv(whole / "sft/training.csv")["loss"][0] == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("loss_on", ["completion", "all"])
def test_labels(inputs, loss_on):
    tokenizer = toy.tiny_tokenizer(pad=None)
    prepare_tokenizer(tokenizer, toy.tiny_model(vocab=37))
    rows = sft.Examples(inputs / "sft.arrow", 128, loss_on)
    table = pd.read_parquet(inputs / "sft.parquet")
    assert len(rows) == 24
    for row, prompt, completion in zip(rows, table["prompt"], table["completion"], strict=True):
        whole = tokenizer.apply_chat_template([*prompt, *completion], return_dict=False)
        assert row["input_ids"] == whole
        learnt = [token for token in row["labels"] if token != sft.IGNORED]
        text = completion[0]["content"] + " <eos>"
        assert tokenizer.decode(learnt) == (text if loss_on == "completion" else tokenizer.decode(whole))


def test_long_rows_are_cut_or_dropped_and_counted(inputs, capsys):
    lengths = [len(row["input_ids"]) for row in sft.Examples(inputs / "sft.arrow", 128, "all")]
    rows = sft.Examples(inputs / "sft.arrow", 8, "completion")
    counts = rows.counts
    assert rows.lengths == [len(row["input_ids"]) for row in rows]
    assert counts["rows"] + counts["dropped"] == 24
    assert counts["cut"] == sum(length > 8 for length in lengths) - counts["dropped"] > 0
    assert counts["dropped"] > 0
    assert max(len(row["input_ids"]) for row in rows) == 8
    assert all(row["labels"][-1] != sft.IGNORED for row in rows)
    said = f"{len(rows)} rows used, {counts['dropped']} prompt too long, {counts['cut']} cut at the end"
    assert said in capsys.readouterr().err


@pytest.mark.e2e
def test_killed_at_random_and_terminated_ends_the_same(inputs, whole, tmp_path):
    times = random.Random(1)
    for signal_number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        toy.in_child(lambda: train(inputs, tmp_path), signal_after=times.uniform(0.2, 1.2), signal_number=signal_number)
        assert not (tmp_path / "sft").exists() or not toy.same_files(whole / "sft", tmp_path / "sft")
    assert toy.in_child(lambda: train(inputs, tmp_path)) == 0
    assert toy.same_files(whole / "sft", tmp_path / "sft") == []


@pytest.mark.e2e
@pytest.mark.parametrize("moment", ["step", "publication"])
def test_killed_at_the_worst_moments(inputs, whole, tmp_path, moment, monkeypatch):
    if moment == "step":
        append = state.TrainingLog.append
        monkeypatch.setattr(
            state.TrainingLog, "append", lambda log, step, row: toy.die() if step == 5 else append(log, step, row)
        )
    else:
        monkeypatch.setattr(checkpoints.shutil, "copy2", lambda *a: toy.die())
    assert toy.in_child(lambda: train(inputs, tmp_path)) == -signal.SIGKILL
    assert not (tmp_path / "sft").exists()
    kept = {"step": "checkpoint-3", "publication": "checkpoint-8"}[moment]
    assert [f.name for f in (tmp_path / "state").glob("checkpoint-*")] == [kept]
    monkeypatch.undo()
    assert toy.in_child(lambda: train(inputs, tmp_path)) == 0
    assert toy.same_files(whole / "sft", tmp_path / "sft") == []


def test_bf16_moves_float32_weights_at_a_tiny_learning_rate(inputs, tmp_path):
    train(inputs, tmp_path, precision="bf16", learning_rate=5e-7, max_steps=2, warmup_ratio=0.0)
    before, after = load_file(inputs / "base/model.safetensors"), load_file(tmp_path / "sft/model.safetensors")
    name = "gpt_neox.layers.0.mlp.dense_h_to_4h.weight"
    assert after[name].dtype == torch.float32
    moved = (after[name] - before[name]).abs()
    assert (moved > 0).float().mean() > 0.9
    assert moved.max() < 2e-6
    assert torch.equal(after[name].bfloat16().float(), after[name]) is False


def test_gradient_checkpointing_is_on_and_changes_nothing(inputs, whole, tmp_path, monkeypatch):
    calls, forward = [], GPTNeoXMLP.forward
    monkeypatch.setattr(GPTNeoXMLP, "forward", lambda *a: calls.append(1) or forward(*a))
    train(inputs, tmp_path, gradient_checkpointing=True)
    assert len(calls) == 2 * (2 * 2 * 8)  # twice (forward and backward) in each layer, micro-batch and step
    one, other = load_file(whole / "sft/model.safetensors"), load_file(tmp_path / "sft/model.safetensors")
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)
    assert json.loads((tmp_path / "sft/config.json").read_text())["use_cache"] is True


def test_epochs_set_the_steps():
    settings = Sft.of({"epochs": 1.5, "batch_size": 16, "learning_rate": 1})
    assert arguments.total_steps(settings, 100) == math.ceil(150 / 16)


def test_global_batch_is_derived(monkeypatch, capsys):
    given = {"max_steps": 1, "batch_size": 32, "learning_rate": 1, "micro_batch_size": 4}
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert arguments.accumulation(Sft.of(given)) == 4
    assert "global batch: 32 = 4 per device × 4 accumulated × 2 processes" in capsys.readouterr().err
    with pytest.raises(InputError, match="batch_size = 32 is no multiple of"):
        arguments.accumulation(Sft.of(given | {"micro_batch_size": 32}))


def no_column(folder):
    toy.write_tokens(folder / "sft.parquet", folder / "base", "final_prompts")


def torn(folder):
    (folder / "sft.arrow").write_bytes((folder / "sft.arrow").read_bytes()[:500])


@pytest.mark.parametrize(
    ("damage", "changes", "message"),
    [
        (no_column, {}, "no column completion_ids"),
        (torn, {}, "sft.arrow is not a whole table of rows"),
        (lambda f: (f / "sft.arrow").unlink(), {}, "sft.arrow does not exist"),
        (lambda f: (f / "base/model.safetensors").unlink(), {}, "has no weights"),
        (lambda f: None, {"max_length": 200}, "max_length = 200 is above the model's context of 128"),
        (lambda f: None, {"max_length": 3}, "no prompt leaves room"),
        (lambda f: None, {"loss_on": "prompt"}, "'sft.loss_on' is 'prompt'; it must be one of completion, all"),
        (lambda f: None, {"max_steps": None}, "'sft.max_steps' is None; it must be given, or epochs instead"),
        (lambda f: None, {"learning_rate": 1e30, "warmup_ratio": 0.0}, r"at step \d .*sample ids: s\d+"),
    ],
)
def test_bad_input(inputs, tmp_path, damage, changes, message):
    shutil.copytree(inputs, tmp_path / "in")
    damage(tmp_path / "in")
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft/good").write_text("good")
    with pytest.raises(InputError, match=message) as error:
        train(tmp_path / "in", tmp_path, **changes)
    assert "\n" not in str(error.value)
    assert (tmp_path / "sft/good").read_text() == "good"

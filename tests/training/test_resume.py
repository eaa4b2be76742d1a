"""A Trainer killed anywhere ends bit-identical to an uninterrupted one: weights, log, random numbers, data order."""

import json
import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
from po_dynamics.data.order import ShuffledRows
from po_dynamics.errors import InputError
from po_dynamics.storage.state import TrainingLog
from po_dynamics.training import resume
from po_dynamics.training.resume import Snapshots, collate_with_ids, train_resumably
from transformers import Trainer, TrainerCallback, TrainingArguments

pytestmark = pytest.mark.e2e

STEPS, BATCH, SAVE_EVERY = 12, 4, 5


class Noisy(torch.nn.Module):
    """Its loss draws from every random number generator: a resume that forgets one ends elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        noise = torch.rand(3) + random.random() + float(np.random.rand())
        return {"loss": ((x - self.weight) ** 2 * noise).mean()}


class Hook(TrainerCallback):
    def __init__(self, event: str, step: int, action) -> None:
        self.step, self.action = step, action
        setattr(self, event, self.run)

    def run(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            self.action()


def rows(count: int = 10) -> list[dict]:
    return [{"id": f"r{i}", "x": torch.tensor([i, i / 2, -i]) / count} for i in range(count)]


def collate(examples: list[dict]) -> dict:
    return {"x": torch.stack([example["x"] for example in examples])}


def train(folder: Path, *callbacks, data=None, steps: int = STEPS) -> Noisy:
    """Three epochs and a bit of ten rows, two micro-batches per step."""
    model, state = Noisy(), folder / "state"
    args = TrainingArguments(
        output_dir=str(state),
        max_steps=steps,
        per_device_train_batch_size=BATCH // 2,
        gradient_accumulation_steps=2,
        learning_rate=0.1,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    data = ShuffledRows(data or rows(), steps * BATCH, seed=0)
    trainer = Trainer(model, args, train_dataset=data, data_collator=collate_with_ids(collate))
    train_resumably(trainer, state, save_every=SAVE_EVERY, log=TrainingLog(folder / "log.csv"), callbacks=callbacks)
    (folder / "weights.json").write_text(json.dumps(model.weight.tolist()))
    return model


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert toy.in_child(lambda: train(folder)) == 0
    return folder


def check(whole: Path, folder: Path) -> None:
    for name in ("weights.json", "log.csv"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize(("event", "step"), [("on_step_end", 5), ("on_log", 10), ("on_pre_optimizer_step", 6)])
def test_killed_at_a_step(whole, tmp_path, step, event):
    assert toy.in_child(lambda: train(tmp_path, Hook(event, step, toy.die))) == -9
    assert toy.in_child(lambda: train(tmp_path)) == 0
    check(whole, tmp_path)


@pytest.mark.parametrize(("part", "step"), [("optimizer.pt", 10), ("rng_state.pth", 5)])
def test_killed_while_saving(whole, tmp_path, part, step, monkeypatch):
    """The torn checkpoint does not count, the one before does."""
    save = torch.save

    def save_or_die(content, file, *args, **kwargs):
        if str(file).endswith(f"checkpoint-{step}/{part}"):
            Path(file).write_bytes(b"half a file")
            toy.die()
        save(content, file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", save_or_die)
    assert toy.in_child(lambda: train(tmp_path)) == -9
    assert (tmp_path / f"state/checkpoint-{step}").exists()
    monkeypatch.undo()
    assert toy.in_child(lambda: train(tmp_path)) == 0
    check(whole, tmp_path)


def test_killed_before_the_marker_and_before_pruning(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "write_json", lambda *a: toy.die())
    assert toy.in_child(lambda: train(tmp_path)) == -9
    monkeypatch.undo()
    monkeypatch.setattr(resume, "remove", lambda path: toy.die() if path.name == "checkpoint-5" else None)
    (tmp_path / "state/checkpoint-5/optimizer.pt").unlink()  # it has no marker, so nobody may read it
    assert toy.in_child(lambda: train(tmp_path)) == -9
    monkeypatch.undo()
    assert toy.in_child(lambda: train(tmp_path)) == 0
    check(whole, tmp_path)


@pytest.mark.parametrize("step", [3, 11])
def test_terminated_saves_first_and_goes_on(whole, tmp_path, step):
    stop = Hook("on_step_begin", step, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert toy.in_child(lambda: train(tmp_path, stop)) == 143
    assert [f.name for f in (tmp_path / "state").glob("checkpoint-*")] == [f"checkpoint-{step + 1}"]
    assert toy.in_child(lambda: train(tmp_path)) == 0
    check(whole, tmp_path)


def test_finished_training_takes_no_further_step(whole, tmp_path):
    for _ in range(2):
        assert toy.in_child(lambda: train(tmp_path)) == 0
        check(whole, tmp_path)


def test_killed_again_and_again_at_random(whole, tmp_path):
    times = random.Random(0)
    for _ in range(4):
        toy.in_child(lambda: train(tmp_path), signal_after=times.uniform(0.01, 0.25))
    assert toy.in_child(lambda: train(tmp_path)) == 0
    check(whole, tmp_path)


@pytest.mark.parametrize("value", [torch.nan, 1e30])  # the square of the latter overflows
def test_non_finite_stops_with_names_and_keeps_the_good(tmp_path, value):
    data = rows(40)
    bad = ShuffledRows(data, 48, seed=0).order(0)[26]  # second micro-batch of step 7
    data[bad]["x"] = torch.full((3,), value)
    with pytest.raises(InputError, match=rf"the loss is (nan|inf) at step 7 .*r{bad}\b.*checkpoint-5"):
        train(tmp_path, data=data)
    assert [f.name for f in (tmp_path / "state").glob("checkpoint-*")] == ["checkpoint-5"]


def test_gradient_alone_is_guarded(tmp_path):
    class Break(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 6:
                model.weight.register_hook(lambda gradient: gradient * torch.inf)

    with pytest.raises(InputError, match=r"the gradient norm is (nan|inf) at step 7 .*checkpoint-5"):
        train(tmp_path, Break())


def test_rows_are_permutations_of_every_epoch():
    data = ShuffledRows(list(range(10)), 35, seed=3)
    seen = [data[i] for i in range(len(data))]
    assert len(seen) == 35
    for epoch in range(3):
        assert sorted(seen[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert seen[:10] != seen[10:20]
    assert [data[i] for i in (34, 0, 12)] == [seen[34], seen[0], seen[12]]
    assert [ShuffledRows(list(range(10)), 35, seed=4)[i] for i in range(35)] != seen


def test_rows_of_a_batch_have_similar_lengths():
    lengths = [random.Random(i).randint(1, 100) for i in range(330)]
    data = ShuffledRows(lengths, 990, 0, lengths, 8)
    seen = [data[i] for i in range(len(data))]
    for epoch in range(3):
        assert sorted(seen[330 * epoch : 330 * epoch + 330]) == sorted(lengths)

    def padding(order: list[int]) -> int:
        return sum(8 * max(order[i : i + 8]) - sum(order[i : i + 8]) for i in range(0, 984, 8))

    plain = ShuffledRows(lengths, 990, 0)
    assert padding(seen) < 0.4 * padding([plain[i] for i in range(990)])


def test_snapshots_at_the_given_steps(tmp_path):
    model, tokenizer = toy.tiny_model(), toy.tiny_tokenizer()

    def collate_ids(examples: list[dict]) -> dict:
        ids = torch.tensor([example["ids"] for example in examples])
        return {"input_ids": ids, "labels": ids}

    data = [{"ids": [i, i + 1, i + 2]} for i in range(8)]
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=2, report_to="none", use_cpu=True,
        dataloader_pin_memory=False, remove_unused_columns=False, learning_rate=0.1, lr_scheduler_type="linear",
    )  # fmt: skip
    trainer = Trainer(model, args, train_dataset=ShuffledRows(data, 8, 0), data_collator=collate_ids)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps = Snapshots(tmp_path / "checkpoints", [100, 103, 104], tokenizer, first_step=100)
    train_resumably(trainer, tmp_path, save_every=10, callbacks=[steps], first_step=100)
    assert sorted(f.name for f in (tmp_path / "checkpoints").iterdir()) == ["step-100", "step-103", "step-104"]
    load = toy.AutoModelForCausalLM.from_pretrained
    first, last = load(tmp_path / "checkpoints/step-100"), load(tmp_path / "checkpoints/step-104")
    assert all(torch.equal(before[name], value) for name, value in first.state_dict().items())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in last.state_dict().items())
    stored = json.loads((tmp_path / "checkpoints/step-103/optimizer.json").read_text())
    assert stored["step"] == 3
    assert stored["learning_rate"] == pytest.approx(0.1 / 4)  # of the step to come

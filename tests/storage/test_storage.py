"""Atomic files and folders, SIGTERM, the training log, the state's signature, checkpoints for the probe."""

import json
import math
import os
import signal
import socket
from pathlib import Path

import pytest
import torch
import toy
from po_dynamics.errors import InputError
from po_dynamics.storage.atomic import atomic_file, atomic_folder
from po_dynamics.storage.checkpoints import save_step
from po_dynamics.storage.state import Termination, TrainingLog, open_state, require_finite
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_folder_appears_complete_and_replaces_the_old_one(tmp_path):
    for content in ("first", "second"):
        with atomic_folder(tmp_path / "a") as folder:
            (folder / "f").write_text(content)
            assert not (tmp_path / "a").exists() or (tmp_path / "a/f").read_text() == "first"
        assert (tmp_path / "a/f").read_text() == content
    assert names(tmp_path) == ["a"]


def test_failed_block_leaves_what_was_there(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/f").write_text("good")
    (tmp_path / "b").write_text("good")
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "a") as folder:
        (folder / "f").write_text("bad" * (1 // len(list(folder.iterdir()))))
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "b") as file:
        file.write_text("bad" * (1 // file.write_text("")))
    assert (tmp_path / "a/f").read_text() == (tmp_path / "b").read_text() == "good"
    assert names(tmp_path) == ["a", "b"]


def test_killed_block_leaves_nothing_that_looks_complete_and_is_cleaned(tmp_path):
    def write() -> None:
        with atomic_folder(tmp_path / "a") as folder:
            (folder / "f").write_text("half")
            toy.die()

    assert toy.in_child(write) == -signal.SIGKILL
    assert not (tmp_path / "a").exists()
    assert len(names(tmp_path)) == 1  # the temporary of the dead process
    with atomic_folder(tmp_path / "a") as folder:
        (folder / "f").write_text("whole")
    assert names(tmp_path) == ["a"]


def test_temporary_of_a_living_process_stays(tmp_path):
    host = socket.gethostname()
    (tmp_path / f".a.{host}~{os.getppid()}.tmp").mkdir()
    (tmp_path / ".a.elsewhere~1.tmp").mkdir()  # another host's, and young
    with atomic_folder(tmp_path / "a"):
        pass
    assert len(names(tmp_path)) == 3
    old = tmp_path / ".a.elsewhere~1.tmp"
    os.utime(old, (0, 0))
    with atomic_folder(tmp_path / "a"):
        pass
    assert not old.exists()


def test_termination_sets_a_flag_and_gives_the_handler_back():
    before = signal.getsignal(signal.SIGTERM)
    with Termination() as termination:
        assert not termination.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert termination.requested
        with pytest.raises(SystemExit) as stop:
            termination.exit()
    assert stop.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_log_continues_exactly(tmp_path):
    whole, torn = TrainingLog(tmp_path / "whole.csv"), TrainingLog(tmp_path / "torn.csv")
    rows = [{"loss": 1 / (step + 3), "n": step} for step in range(1, 8)]
    for log, last in ((whole, 7), (torn, 5)):
        log.rewind(0)
        for step in range(1, last + 1):
            log.append(step, rows[step - 1])
    with torn.path.open("a") as file:
        file.write("1")  # the start of row 12 would read as row 1
    again = TrainingLog(torn.path)
    again.rewind(3)
    for step in range(4, 8):
        again.append(step, rows[step - 1])
    assert torn.path.read_bytes() == whole.path.read_bytes()
    assert whole.path.read_text().startswith("step,loss,n\n1,0.25,1\n")
    again.rewind(0)
    assert not torn.path.exists()


def test_log_takes_new_columns(tmp_path):
    log = TrainingLog(tmp_path / "log.csv")
    log.append(1, {"a": 1.5})
    log.append(2, {"a": 2.5, "b": math.inf})
    log.append(3, {"b": 0.5})
    assert log.path.read_text() == "step,a,b\n1,1.5,\n2,2.5,inf\n3,,0.5\n"


def test_state_of_other_settings_is_discarded(tmp_path, capsys):
    state = tmp_path / "state"
    open_state(state, {"lr": 1e-3, "path": tmp_path})
    (state / "checkpoint-5").mkdir()
    open_state(state, {"path": tmp_path, "lr": 1e-3})
    assert (state / "checkpoint-5").exists()
    assert capsys.readouterr().out == ""
    open_state(state, {"lr": 2e-3, "path": tmp_path})
    assert names(state) == ["signature.json"]
    assert "other settings" in capsys.readouterr().out


def test_state_without_signature_is_discarded(tmp_path):
    (tmp_path / "checkpoint-5").mkdir()
    open_state(tmp_path, {})
    assert names(tmp_path) == ["signature.json"]


def stepped(model: torch.nn.Module) -> torch.optim.AdamW:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.8, 0.9), eps=1e-7, weight_decay=0.05)
    model(input_ids=torch.arange(6)[None]).logits.square().mean().backward()
    optimizer.step()
    return optimizer


def test_step_checkpoint_holds_weights_and_second_moments(tmp_path):
    model, tokenizer = toy.tiny_model(), toy.tiny_tokenizer()
    optimizer = stepped(model)
    save_step(model, tokenizer, tmp_path / "step-3", optimizer=optimizer, critic=toy.tiny_model(seed=1))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "step-3")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    moments = load_file(tmp_path / "step-3/exp_avg_sq.safetensors")
    used = {name: optimizer.state[p]["exp_avg_sq"] for name, p in model.named_parameters() if p in optimizer.state}
    assert used.keys() == moments.keys()
    assert all(torch.equal(moments[name], value) for name, value in used.items())
    stored = json.loads((tmp_path / "step-3/optimizer.json").read_text())
    assert stored == {"step": 1, "learning_rate": 1e-3, "betas": [0.8, 0.9], "eps": 1e-7, "weight_decay": 0.05}
    assert (tmp_path / "step-3/critic/model.safetensors").exists()
    assert (tmp_path / "step-3/tokenizer.json").exists()


def test_step_zero_has_no_optimizer_and_bfloat16_is_saved_as_float32(tmp_path):
    model = toy.tiny_model(dtype=torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters())
    save_step(model, toy.tiny_tokenizer(), tmp_path / "step-0", optimizer=optimizer)
    assert not (tmp_path / "step-0/optimizer.json").exists()
    assert {value.dtype for value in load_file(tmp_path / "step-0/model.safetensors").values()} == {torch.float32}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "step-0").dtype == torch.float32


def test_checkpoint_of_a_tied_model_loads(tmp_path):
    model = toy.tiny_model("llama", tie_word_embeddings=True)
    save_step(model, toy.tiny_tokenizer(), tmp_path / "step-1", optimizer=stepped(model))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "step-1")
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert again.lm_head.weight is again.model.embed_tokens.weight


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_names_step_samples_and_checkpoint(value):
    with pytest.raises(InputError, match=r"the loss is -?(nan|inf) at step 7 \(sample ids: p1, p2\).*checkpoint-5"):
        require_finite(value, what="the loss", step=7, sample_ids=["p1", "p2"], last_good=Path("state/checkpoint-5"))
    require_finite(1.0, what="the loss", step=7, sample_ids=[], last_good=None)

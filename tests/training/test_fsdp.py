"""Weights sharded over two processes (FSDP2, on the CPU): checkpoints, and training that is interrupted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import tiny_fsdp
import tiny_offline
import tiny_ppo
import tiny_sft
import torch
import toy
import yaml
from accelerate.state import AcceleratorState
from po_dynamics.objectives.registry import bind
from po_dynamics.ppo import train
from safetensors.torch import load_file

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]


def on_two_processes(what: str, folder: Path) -> tuple[int, str]:
    folder.mkdir(exist_ok=True)
    path = os.pathsep.join([str(ROOT / "tests" / "helpers"), str(ROOT / "workflow")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*torchrun, tiny_fsdp.__file__, what, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    return done.returncode, done.stdout + done.stderr


def interrupted(what: str, folder: Path) -> None:
    """Ends after its third step, then starts again and ends well."""
    status, output = on_two_processes(what, folder)
    assert status, output
    assert (folder / "interrupted").exists(), output
    assert (folder / "state").is_dir()
    status, output = on_two_processes(what, folder)
    assert status == 0, output


# Parameters without a gradient but for rounding, which AdamW amplifies: key biases, and in a difference of two scores
# the bias that is added to both.
WITHOUT_GRADIENT = ("query_key_value.bias",)
WITHOUT_GRADIENT_IN_PAIRS = (*WITHOUT_GRADIENT, "final_layer_norm.bias")


def largest_difference(one: Path, other: Path, without: tuple[str, ...] = WITHOUT_GRADIENT) -> float:
    files = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    assert files
    assert files == sorted(path.relative_to(other) for path in other.rglob("*.safetensors"))
    largest = 0.0
    for file in files:
        a, b = load_file(one / file), load_file(other / file)
        assert a.keys() == b.keys()
        for name in a:
            if not name.endswith(without):
                largest = max(largest, float((a[name] - b[name]).abs().max()))
    return largest


def test_settings_are_those_of_the_cluster():
    settings = yaml.safe_load((ROOT / "slurm/fsdp.yaml").read_text())["fsdp_config"]
    tested = {name.lower(): value for name, value in tiny_fsdp.FSDP.items() if name.startswith("FSDP_")}
    assert {name: str(value) for name, value in settings.items()} == {
        name: value.title() if value in ("true", "false") else value for name, value in tested.items()
    }


def test_step_checkpoint_is_that_of_the_whole_model(tmp_path: Path) -> None:
    status, output = on_two_processes("steps", tmp_path)
    assert status == 0, output
    assert (tmp_path / "sharded/exp_avg_sq.safetensors").exists()
    assert (tmp_path / "sharded/critic/model.safetensors").exists()
    assert toy.same_files(tmp_path / "sharded", tmp_path / "whole") == []


def test_ppo_sharded_and_interrupted(tmp_path: Path) -> None:
    world = tiny_ppo.write_world(tmp_path)
    inputs = world["policy"], world["reward"], world["prompts"]
    outputs = [tmp_path / "whole" / name for name in ("output", "log", "state")]
    train.train_online(*inputs, *outputs, bind("ppo", {"epsilon": 0.2}), tiny_ppo.SETTINGS, 0)
    AcceleratorState._reset_state(reset_partial_state=True)
    interrupted("ppo", tmp_path / "sharded")
    assert largest_difference(tmp_path / "whole/output", tmp_path / "sharded/output") < 5e-5
    rows = [(tmp_path / name / "log").read_text().count("\n") for name in ("whole", "sharded")]
    assert rows == [5, 5]


def test_a_sharded_published_reward_model_scores_as_the_whole_one(tmp_path: Path) -> None:
    tiny_ppo.armorm(tmp_path / "armorm")
    status, output = on_two_processes("armorm", tmp_path / "scores")
    assert status == 0, output
    for process in (0, 1):
        whole, sharded = torch.load(tmp_path / f"scores/scores-{process}.pt")
        torch.testing.assert_close(sharded, whole)
        assert whole.std() > 1e-4


def test_offline_sharded_and_interrupted(tmp_path: Path) -> None:
    tiny_offline.make_world(tmp_path)
    whole = tiny_offline.train(tmp_path, tmp_path / "whole", micro_batch_size=8)
    interrupted("offline", tmp_path / "sharded")
    assert largest_difference(whole / "checkpoints", tmp_path / "sharded/checkpoints") < 5e-5
    logs = tiny_offline.log_of(whole), tiny_offline.log_of(tmp_path / "sharded")
    assert len(logs[0]) == 6
    for a, b in zip(*logs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("what", ["sft", "reward"])
def test_models_before_sharded_and_interrupted_at_the_end(tmp_path: Path, what: str) -> None:
    """As with one process; and the weights of a run that ended between its last step and its publication are there."""
    tiny_sft.make_world(tmp_path)
    getattr(tiny_sft, what)(tmp_path, tmp_path / "whole", micro_batch_size=8)
    interrupted(what, tmp_path / "sharded")
    without = WITHOUT_GRADIENT_IN_PAIRS if what == "reward" else WITHOUT_GRADIENT
    assert largest_difference(tmp_path / "whole/output", tmp_path / "sharded/output", without) < 5e-5
    logs = [pd.read_csv(tmp_path / name / "output/training.csv") for name in ("whole", "sharded")]
    assert logs[0]["step"].tolist() == logs[1]["step"].tolist()
    assert logs[0]["loss"].to_numpy() == pytest.approx(logs[1]["loss"].to_numpy(), abs=1e-5)
    assert not (tmp_path / "sharded/state").exists()

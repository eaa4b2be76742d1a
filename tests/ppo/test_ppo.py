"""The PPO trainer: exact resume, several processes, ratio 1, non-finite values, precision, checkpoints."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny_ppo
import torch
from po_dynamics.errors import InputError
from po_dynamics.objectives.registry import bind
from po_dynamics.ppo import probe_rollouts, train
from po_dynamics.ppo.experience import Experience, Models, Rollouts, Sources, evaluate
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
RUNNER = """
import json, sys
from pathlib import Path
from po_dynamics.objectives.registry import bind
from po_dynamics.ppo.train import train_online
job = json.loads(Path(sys.argv[1]).read_text())
for name in ("policy", "prompts", "output", "log", "state"):
    job[name] = Path(job[name])
train_online(**job | {"objective": bind("ppo", {"epsilon": 0.2})})
"""
SLOW_REWARD = """
import time
def score(prompts, responses):
    time.sleep(0.25)
    return [-float(len(response.split())) for response in responses]
"""


def job(world: dict[str, Path], folder: Path, **changes: Any) -> dict[str, Any]:
    settings = tiny_ppo.SETTINGS | changes.pop("settings", {})
    arguments = {name: folder / name for name in ("output", "log", "state")}
    arguments |= {"policy": world["policy"], "reward": world["reward"], "prompts": world["prompts"]}
    return {**arguments, "objective": bind("ppo", {"epsilon": 0.2}), "settings": settings, "seed": 0, **changes}


def launch(folder: Path, arguments: dict[str, Any], *command: str) -> subprocess.Popen[str]:
    """A training run in a process of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "run.py").write_text(RUNNER)
    (folder / "slow_reward.py").write_text(SLOW_REWARD)
    (folder / "job.json").write_text(json.dumps(arguments, default=str))
    path = os.pathsep.join([str(folder), str(Path(train.__file__).parents[2])])
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": path,
        "CUDA_VISIBLE_DEVICES": "",
    }
    return subprocess.Popen(
        [sys.executable, *command, str(folder / "run.py"), str(folder / "job.json")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,  # universal newlines: each redraw of the bar is a line
    )


def assert_same(one: Path, other: Path, tolerance: float = 0.0) -> None:
    """Same checkpoints (weights, critic, second moments) and the same log but for the speed."""
    files = sorted(path.relative_to(one / "output") for path in (one / "output").rglob("*.safetensors"))
    assert files == sorted(path.relative_to(other / "output") for path in (other / "output").rglob("*.safetensors"))
    assert len(files) == 2 * 3 + 2
    for file in files:
        left, right = load_file(one / "output" / file), load_file(other / "output" / file)
        assert left.keys() == right.keys()
        for name in left:
            torch.testing.assert_close(left[name], right[name], rtol=tolerance, atol=tolerance)
    logs = [pd.read_csv(run / "log") for run in (one, other)]
    pd.testing.assert_frame_equal(*logs, check_exact=tolerance == 0.0, rtol=max(tolerance, 1e-12) * 100, atol=tolerance)


@pytest.fixture(scope="module")
def finished(world: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("finished")
    train.train_online(**job(world, folder))
    return folder


def test_outputs(finished: Path, world: dict[str, Path]) -> None:
    assert sorted(path.name for path in (finished / "output").iterdir()) == ["step-0", "step-2", "step-4"]
    assert not (finished / "state").exists()
    log = pd.read_csv(finished / "log")
    assert log.columns[0] == "step"
    assert log["step"].tolist() == [1, 2, 3, 4]
    assert log.notna().all(axis=None)
    first, last = (AutoModelForCausalLM.from_pretrained(finished / "output" / f"step-{t}") for t in (0, 4))
    start = AutoModelForCausalLM.from_pretrained(world["policy"])
    for (name, a), b, c in zip(first.named_parameters(), start.parameters(), last.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert not torch.equal(a, c) or name.endswith("key.bias"), name
    moments = load_file(finished / "output" / "step-4" / "exp_avg_sq.safetensors")
    assert moments.keys() == dict(last.named_parameters()).keys()
    assert json.loads((finished / "output" / "step-4" / "optimizer.json").read_text())["learning_rate"] == 3e-3


def test_from_a_checkpoint_the_second_moments_go_on(finished: Path, world: dict[str, Path], tmp_path: Path) -> None:
    start, settings = finished / "output" / "step-2", {"max_steps": 3, "checkpoints": [3]}
    changes = {"policy": start, "reference": world["policy"], "first_step": 2, "settings": settings}
    train.train_online(**job(world, tmp_path, **changes))
    end = tmp_path / "output" / "step-3"
    before, after = (load_file(folder / "exp_avg_sq.safetensors") for folder in (start, end))
    assert json.loads((end / "optimizer.json").read_text())["step"] == 12  # four optimizer steps an update
    decayed = {name: value * 0.999**4 for name, value in before.items()}
    assert all((after[name] >= value * (1 - 1e-5)).all() for name, value in decayed.items())
    grown = sum(float((after[name] - value).sum()) for name, value in decayed.items())
    assert 0 < grown < 10 * sum(float(value.sum()) for value in before.values())


def test_log_is_consistent(finished: Path) -> None:
    log = pd.read_csv(finished / "log")
    assert (log[["fraction_POS", "fraction_NEG"]].sum(axis=1) - 1).abs().max() < 1e-9
    assert (log[["fraction_TOP", "fraction_MID", "fraction_BOT"]].sum(axis=1) - 1).abs().max() < 1e-9
    assert log.loc[0, "kl_per_response"] == 0.0
    assert log.loc[0, "explained_variance"] < 1.0
    assert (log["ratio_first_deviation"] < 1e-5).all()
    assert (log["kl_coefficient"].diff().dropna() != 0).all()  # kl_target is set
    assert (log["sampling_mismatch"].abs() < 1e-5).all()
    assert (log["kl_per_response"] / log["kl_per_token"]).iloc[1:].sub(
        log["response_length"].iloc[1:]
    ).abs().max() < 1e-6


@pytest.mark.e2e
def test_killed_at_random_points_ends_bit_identical(
    world: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken, rng = tmp_path / "whole", tmp_path / "broken", random.Random(time.time_ns())
    settings = {"max_steps": 7, "save_every": 2}
    saved = 0
    for kind in (signal.SIGKILL, signal.SIGTERM):
        process = launch(broken, job(world, broken, reward="slow_reward:score", settings=settings))
        _wait_for_row(broken / "state" / "training.csv", saved + 1, process)
        time.sleep(rng.uniform(0.0, 0.6))
        process.send_signal(kind)
        output = process.communicate(timeout=60)[0]
        assert process.returncode == (143 if kind == signal.SIGTERM else -kind), output
        assert not (broken / "output").exists()
        progress = broken / "state" / "resume" / "progress.json"
        saved = json.loads(progress.read_text())["step"] if progress.exists() else 0
    assert 1 <= saved < 7
    assert len((broken / "state" / "training.csv").read_text().splitlines()) == 1 + saved  # SIGTERM saves first
    monkeypatch.syspath_prepend(str(broken))
    for folder in (broken, whole):
        train.train_online(**job(world, folder, reward="slow_reward:score", settings=settings))
    assert_same(whole, broken)


def _wait_for_row(log: Path, rows: int, process: subprocess.Popen[str]) -> None:
    """Until this process has added a row (the log of an interrupted one may be longer, until it is rewound)."""
    started, deadline = time.time(), time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and log.stat().st_mtime > started and len(log.read_text().splitlines()) > rows:
            return
        time.sleep(0.02)
    raise AssertionError(process.communicate(timeout=5)[0])


@pytest.mark.e2e
def test_two_processes_make_the_same_updates_as_one(finished: Path, world: dict[str, Path], tmp_path: Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    process = launch(tmp_path, job(world, tmp_path), *torchrun)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "on 2 process(es)" in output
    assert_same(finished, tmp_path, tolerance=2e-5)


def test_first_ratio_is_one_under_hostile_defaults(world: dict[str, Path], tmp_path: Path) -> None:
    hostile = AutoModelForCausalLM.from_pretrained(world["policy"])
    hostile.generation_config = GenerationConfig(
        repetition_penalty=1.7, min_p=0.3, no_repeat_ngram_size=2, temperature=0.3, top_k=3, do_sample=True
    )
    hostile.save_pretrained(tmp_path / "policy")
    tiny_ppo.tokenizer().save_pretrained(tmp_path / "policy")
    logs = []
    for name, policy in (("mild", world["policy"]), ("hostile", tmp_path / "policy")):
        changes = {"max_steps": 2, "checkpoints": [2], "rollout": "generate" if name == "hostile" else "cached"}
        train.train_online(**job(world, tmp_path / name, policy=policy, settings=changes))
        logs.append(pd.read_csv(tmp_path / name / "log"))
    assert (logs[1]["ratio_first_deviation"] < 1e-5).all()
    pd.testing.assert_frame_equal(*logs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("where", ["reward", "weights"])
def test_non_finite_values_stop_the_run(where: str, world: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "nan_reward.py").write_text(
        "def score(prompts, responses):\n    return [float('nan') if i == 3 else 1.0 for i in range(len(responses))]\n"
    )
    changes: dict[str, Any] = {"reward": "nan_reward:score"}
    if where == "weights":  # values of 1e30 make the critic's squared error overflow
        changes = {"reward": "huge_reward:score"}
        (tmp_path / "huge_reward.py").write_text("def score(prompts, responses):\n    return [3e38] * len(responses)\n")
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(InputError, match=r"at step 0 \(sample ids: p\d+.*last good checkpoint is .*step-0"):
            train.train_online(**job(world, tmp_path / "run", **changes))
    finally:
        sys.path.remove(str(tmp_path))
    assert not (tmp_path / "run" / "output").exists()
    assert (tmp_path / "run" / "state" / "checkpoints" / "step-0" / "model.safetensors").is_file()


def test_bf16_autocast_moves_fp32_weights_at_a_tiny_rate(world: dict[str, Path], tmp_path: Path) -> None:
    changes = {"precision": "bf16", "learning_rate": 5e-7, "max_steps": 1, "checkpoints": [0, 1], "epochs": 1}
    train.train_online(**job(world, tmp_path, settings=changes))
    before, after = (load_file(tmp_path / "output" / f"step-{t}" / "model.safetensors") for t in (0, 1))
    assert all(weights.dtype == torch.float32 for weights in after.values())
    moved = torch.cat([(after[name] != before[name]).flatten() for name in before])
    assert moved.float().mean() > 0.9
    step = torch.cat([(after[name] - before[name]).abs().flatten() for name in before])
    assert 0 < step.max() < 4e-6


def test_gradient_checkpointing_recomputes_and_changes_nothing(
    finished: Path, world: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXMLP

    calls = {"count": 0}
    forward = GPTNeoXMLP.forward

    def counted(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        calls["count"] += self.training and torch.is_grad_enabled()
        return forward(self, hidden)

    monkeypatch.setattr(GPTNeoXMLP, "forward", counted)
    counts = []
    for name, on in (("off", False), ("on", True)):
        calls["count"] = 0
        train.train_online(**job(world, tmp_path / name, settings={"gradient_checkpointing": on}))
        counts.append(calls["count"])
    assert counts[1] == 2 * counts[0] > 0
    assert_same(finished, tmp_path / "off")
    assert_same(finished, tmp_path / "on", tolerance=1e-6)


def test_critic_warm_up_leaves_the_policy_alone(world: dict[str, Path], tmp_path: Path) -> None:
    changes = {"critic_warmup_steps": 2, "max_steps": 2, "checkpoints": [0, 2]}
    train.train_online(**job(world, tmp_path, settings=changes))
    steps = [tmp_path / "output" / f"step-{t}" for t in (0, 2)]
    for part, same in (("model.safetensors", True), ("critic/model.safetensors", False)):
        before, after = (load_file(step / part) for step in steps)
        assert all(torch.equal(before[name], after[name]) for name in before) is same


def fresh(finished: Path, world: dict[str, Path], seed: int = 0, **changes: Any) -> list[probe_rollouts.RolloutSample]:
    """Nine roll-outs of the checkpoint in the middle of the run."""
    sources = Sources(finished / "output" / "step-2", world["reward"], world["policy"], world["prompts"])
    return probe_rollouts.fresh_rollouts(sources, 9, tiny_ppo.SETTINGS | changes, seed, bind("ppo"))


def test_fresh_rollouts(finished: Path, world: dict[str, Path]) -> None:
    samples, again, other = (fresh(finished, world, seed=seed) for seed in (0, 0, 1))
    assert len(samples) == 9
    assert len({sample.id for sample in samples}) == 9
    assert [s.response_ids for s in samples] == [s.response_ids for s in again]
    assert [s.response_ids for s in samples] != [s.response_ids for s in other]
    whitened = torch.cat([sample.advantages_R for sample in samples])
    assert float(whitened.mean()) == pytest.approx(0, abs=1e-5)
    assert float(whitened.std()) == pytest.approx(1, abs=1e-4)
    for sample in samples:
        assert all(len(part) == len(sample.response_ids) for part in sample[5:])
        assert sample.ended == (sample.response_ids[-1] == 2)
        _check_against_formulas(sample)
    assert any((sample.logps_R - sample.ref_logps_R).abs().max() > 1e-3 for sample in samples)


def test_fresh_rollouts_come_from_the_engine_of_training(finished: Path, world: dict[str, Path]) -> None:
    cached, generated = fresh(finished, world), fresh(finished, world, rollout="generate")
    assert [sample.response_ids for sample in generated] == [sample.response_ids for sample in cached]
    if importlib.util.find_spec("vllm") is None:
        with pytest.raises(InputError, match="vllm is not installed"):
            fresh(finished, world, rollout="vllm")


def test_probe_and_trainer_make_the_same_of_the_same_responses(
    finished: Path, world: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Rollouts, Experience]] = []

    def watch(models: Models, rollouts: Rollouts, *arguments: Any) -> Experience:
        seen.append((rollouts, evaluate(models, rollouts, *arguments)))
        return seen[-1][1]

    monkeypatch.setattr(train, "evaluate", watch)
    train.train_online(**job(world, tmp_path, settings={"max_steps": 1, "checkpoints": [0]}))
    rollouts, trained = seen[0]
    monkeypatch.setattr(probe_rollouts, "roll_out", lambda *_: rollouts)
    sources = Sources(tmp_path / "output" / "step-0", world["reward"], world["policy"], world["prompts"])
    samples = probe_rollouts.fresh_rollouts(sources, 8, tiny_ppo.SETTINGS, 0, bind("ppo"))
    for row, sample in enumerate(samples):
        mask = trained.batch.loss_mask_BT[row]
        assert torch.equal(sample.advantages_R, trained.advantages.whitened_BT[row][mask])
        assert torch.equal(sample.values_R, trained.old_values_BT[row][mask])


def _check_against_formulas(sample: probe_rollouts.RolloutSample) -> None:
    """GAE by its definition, from the sample's own numbers."""
    rewards = -0.1 * (sample.logps_R - sample.ref_logps_R).double()
    coefficient = 0.1  # moved a little by the adaptive controller: hence the tolerance
    rewards[-1] += sample.reward
    values = torch.cat((sample.values_R.double(), torch.zeros(1, dtype=torch.float64)))
    deltas = rewards + values[1:] - values[:-1]
    for t in range(len(deltas)):
        powers = 0.95 ** torch.arange(len(deltas) - t, dtype=torch.float64)
        expected = float((powers * deltas[t:]).sum())
        assert float(sample.raw_advantages_R[t]) == pytest.approx(expected, abs=coefficient * 1e-2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"max_step": 3}}, "'online.max_step' is unknown"),
        ({"settings": {"batch_size": 9}}, "batch_size' is 9; it must be a multiple of mini_batches, 2"),
        ({"settings": {"max_new_tokens": 60}}, "context of 64"),
        ({"settings": {"max_prompt_length": 1}}, "none of 12 prompts has at most 1 tokens"),
        ({"settings": {"checkpoints": [7]}}, "checkpoints' is 7; it must be at most max_steps"),
        ({"settings": {"lr_schedule": "wavy"}}, "lr_schedule' is 'wavy'"),
        ({"reward": "no.such.module:f"}, "no.such"),
        ({"reward": "/no/such/folder"}, "no such folder"),
        ({"policy": Path("/no/such/folder")}, "is not a folder"),
        ({"prompts": Path("/no/such/file")}, "/no/such/file does not exist"),
    ],
)
def test_bad_input_is_one_line(changes: dict[str, Any], message: str, world: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        train.train_online(**job(world, tmp_path, **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "output").exists()


def test_state_of_other_settings_is_not_continued(world: dict[str, Path], tmp_path: Path) -> None:
    arguments = job(world, tmp_path / "run", settings={"max_steps": 2, "checkpoints": [2], "learning_rate": 1e-3})
    arguments["output"].parent.mkdir()
    interrupted = train.ppo_state.publish
    try:
        train.ppo_state.publish = lambda *_: None  # as if killed just before the end
        train.train_online(**arguments)
    finally:
        train.ppo_state.publish = interrupted
    assert (arguments["state"] / "resume").is_dir()
    arguments["settings"] = arguments["settings"] | {"learning_rate": 2e-3}
    train.train_online(**arguments)
    train.train_online(**job(world, tmp_path / "clean", settings=arguments["settings"]))
    left, right = (load_file(tmp_path / n / "output" / "step-2" / "model.safetensors") for n in ("run", "clean"))
    assert all(torch.equal(left[name], right[name]) for name in left)

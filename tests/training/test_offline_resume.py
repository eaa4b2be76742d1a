"""Offline training killed and started again, and on two processes."""

import multiprocessing
import os
import signal
import socket
import time

import po_dynamics.training.offline_trainer  # noqa: F401 (once, before the forks)
import pytest
from tiny_offline import assert_same_files, log_of, make_world, train, weights

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


CDPO = {"objective": "cdpo", "parameters": {"beta": 0.1, "t1": 1, "t2": 30}, "seed": 3}


def start(world, root, settings):
    """A run in a process of its own; forked, because importing TRL takes seconds."""
    process = multiprocessing.get_context("fork").Process(target=train, args=(world, root), kwargs=CDPO | settings)
    process.start()
    return process


def status_of(process):
    process.join()
    return process.exitcode


def reached(root, process, step):
    """Waits until the log has a row of `step`, or the process has ended."""
    log = root / "state/training.csv"
    while process.is_alive():
        if log.exists() and log.read_text().count("\n") > step:
            return
        time.sleep(0.002)


def test_killed_and_resumed_is_the_same(world, tmp_path):
    settings = {"max_steps": 40, "save_every": 6, "checkpoints": [0, 1, 20, 37, 40]}
    whole = tmp_path / "whole"
    assert status_of(start(world, whole, settings)) == 0
    broken, statuses = tmp_path / "broken", []
    for step, kill in ((9, signal.SIGKILL), (21, signal.SIGTERM)):
        process = start(world, broken, settings)
        reached(broken, process, step)
        os.kill(process.pid, kill)
        statuses.append(status_of(process))
        assert not (broken / "checkpoints").exists()
        assert not (broken / "training.csv").exists()
    assert statuses == [-signal.SIGKILL, 143]
    saved = max(int(p.name.split("-")[1]) for p in (broken / "state").glob("checkpoint-*"))
    assert 21 <= saved < 40  # SIGTERM saved where it stopped
    assert status_of(start(world, broken, settings)) == 0
    assert_same_files(whole, broken)


def test_state_of_another_run_is_not_used(world, tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    (state / "signature.json").write_text("{}")
    (state / "checkpoints/step-2").mkdir(parents=True)
    (state / "checkpoints/step-2/model.safetensors").write_text("of another run")
    train(world, tmp_path, max_steps=2, checkpoints=[2])
    assert weights(tmp_path, 2)


def on_two_processes(rank, port, world, root, settings):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    train(world, root, **settings)


def test_two_processes_make_the_same_updates(world, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = CDPO | {"max_steps": 4, "checkpoints": [4], "micro_batch_size": 2}
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=on_two_processes, args=(rank, port, world, tmp_path / "two", settings))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    assert [status_of(process) for process in processes] == [0, 0]
    one = train(world, tmp_path / "one", **settings)
    for a, b in zip(log_of(one), log_of(tmp_path / "two"), strict=True):
        for row in (a, b):
            row.pop("rewards_accuracies")  # a margin of 0 ± rounding counts either way
        assert a == pytest.approx(b, abs=1e-5)
    two = weights(tmp_path / "two", 4)
    for name, value in weights(one, 4).items():
        if "query_key_value.bias" not in name:  # key biases have no gradient; AdamW amplifies their rounding
            assert (value - two[name]).abs().max() < 1e-5, name

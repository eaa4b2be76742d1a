"""Judging jobs as processes: killed, side by side, and with a key that must be nowhere afterwards."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from checkout import ROOT, clone, edit, snakemake
from judge_server import Fault, JudgeServer

pytestmark = pytest.mark.e2e

CANARY = "sk-canary-0123456789abcdef"
JOB = """
import sys
from pathlib import Path
from po_dynamics.evaluation.judge import judge_responses
from po_dynamics.settings.judging.calls import Calls
folder, name, url, connections = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
calls = Calls.of({"endpoint": url, "connections": connections})
judge_responses(folder / f"{name}.parquet", folder / "baseline.parquet", folder / f"{name}-judged.parquet", "openai",
                calls, ledger=folder / f"ledgers/{name}.jsonl", shared=folder / "ledgers")
"""


def write(folder, name, count, letter):
    folder.mkdir(parents=True, exist_ok=True)
    about = {"step": 0, "id": [f"p{i}" for i in range(count)], "instruction": [f"Q{i}" for i in range(count)]}
    texts = [letter * (1 + i % 9) for i in range(count)]
    pd.DataFrame({**about, "response": texts, "ended": True}).to_parquet(folder / f"{name}.parquet")


def start(folder, name, server, connections=8):
    command = [sys.executable, "-c", JOB, str(folder), name, server.url, str(connections)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow")}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(job):
    _, told = job.communicate(timeout=120)
    assert job.returncode == 0, told


def verdicts(folder, name):
    return pd.read_parquet(folder / f"{name}-judged.parquet")


def test_a_killed_job_repeats_no_more_than_what_was_under_way(tmp_path):
    write(tmp_path, "baseline", 120, "y")
    write(tmp_path, "mine", 120, "x")
    with JudgeServer(latency=0.05) as server:
        job = start(tmp_path, "mine", server)
        while sum(server.paid.values()) < 70:
            assert job.poll() is None
            time.sleep(0.005)
        job.kill()
        job.communicate()
        assert job.returncode == -signal.SIGKILL
        time.sleep(0.3)
        finish(start(tmp_path, "mine", server))
        total, prompts = sum(server.paid.values()), len(server.paid)
    assert prompts == 2 * 120
    assert total - prompts <= 8
    found = verdicts(tmp_path, "mine")
    assert found["preference"].to_numpy() == pytest.approx(found["preference_swapped"].to_numpy(), abs=1e-12)
    assert found["preference"].to_numpy() == pytest.approx(0.5, abs=1e-12)  # outputs of equal length


def test_four_jobs_side_by_side_lose_nothing_and_a_fifth_pays_nothing(tmp_path):
    write(tmp_path, "baseline", 60, "y")
    for i, name in enumerate("abcd"):
        write(tmp_path, name, 60, "x" * (i + 1))
    with JudgeServer(latency=0.01) as server:
        jobs = [start(tmp_path, name, server) for name in "abcd"]
        for job in jobs:
            finish(job)
        assert (len(server.paid), set(server.paid.values())) == (4 * 2 * 60, {1})
        lines = [line for path in (tmp_path / "ledgers").glob("*.jsonl") for line in path.read_text().splitlines()]
        assert len({json.loads(line)["key"] for line in lines}) == len(lines) == 4 * 2 * 60
        write(tmp_path, "e", 60, "xx")  # what b said
        finish(start(tmp_path, "e", server))
        assert set(server.paid.values()) == {1}
    pd.testing.assert_frame_equal(verdicts(tmp_path, "e"), verdicts(tmp_path, "b"))
    assert not list(tmp_path.glob("*.json*"))


def checkout(folder, server):
    """An empty checkout whose smoke configuration asks the server, with the key in $JUDGE_KEY."""
    root = clone(folder / "checkout")
    judging = f"judging: {{endpoint: '{server.url}', key: JUDGE_KEY}}"
    edit(root / "config/smoke.yaml", "judge: gold}", f"judge: openai, {judging}}}")
    return root


def judge_base(root):
    """Has the rule judge made-up answers of the base model against the SFT model's; returns what it printed."""
    folder = root / "results/smoke/menagerie/evaluation"
    for name, letter in (("base", "x"), ("sft", "yy")):
        write(folder / name, "responses", 20, letter)
        (folder / name / "responses.parquet.json").write_text("{}")
    (folder / "base/annotations.parquet").unlink(missing_ok=True)
    target = "results/smoke/menagerie/evaluation/base/annotations.parquet"
    done = snakemake(root, "--allowed-rules", "judge_responses", "--", target)
    assert done.returncode == 0, done.stderr
    assert (pd.read_parquet(root / target)["preference"] < 0.5).all()  # the longer answer is preferred
    return done.stdout + done.stderr


def test_a_wrong_key_stops_the_workflow_before_training_and_no_key_is_anywhere(tmp_path, monkeypatch):
    """The judge is examined and asked by the rules; the server refuses the key first, and repeats it."""
    monkeypatch.setenv("JUDGE_KEY", CANARY)
    refusal = Fault(401, f"Incorrect API key provided: {CANARY}", "invalid_api_key")
    with JudgeServer(lambda prompt, attempt: refusal) as server:
        root = checkout(tmp_path, server)
        refused = snakemake(root, "results/smoke/menagerie/base")
        assert refused.returncode != 0
        assert "401: Incorrect API key provided: (key)" in refused.stdout + refused.stderr
        assert not (root / "results").exists()
        server.fault = lambda prompt, attempt: None
        assert snakemake(root, "results/smoke/judge.json", "--dry-run").returncode == 0
        passed = snakemake(root, "results/smoke/judge.json", "results/smoke/config.yaml")
        assert passed.returncode == 0, passed.stderr
        told = [judge_base(root), judge_base(root)]  # the second one pays nothing
        assert sum(server.asked.values()) == 1 + 1 + (1 + 2 * 20) + 1  # before training and judging, one question
        assert server.keys == {f"Bearer {CANARY}"}
    assert json.loads((root / "results/smoke/judge.json").read_text())["served_model"] == "served"
    assert len((root / "results/smoke/judgements/menagerie/evaluation/base.jsonl").read_text().splitlines()) == 40
    assert CANARY not in "".join([refused.stdout, refused.stderr, passed.stdout, passed.stderr, *told])
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "annotations.parquet.json" for path in written)
    assert not [path for path in written if CANARY.encode() in path.read_bytes()]

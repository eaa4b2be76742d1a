"""What scripts share: the log, the one-line error and the provenance record; and launching on several processes."""

import json
import os
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from po_dynamics.errors import InputError
from po_dynamics.harness.job import inputs_of, stage
from po_dynamics.harness.launch import launch
from po_dynamics.objectives.registry import bind


class Named(list):
    """Stands in for Snakemake's containers of named paths."""

    def __init__(self, **named):
        super().__init__(named.values())
        self.__dict__.update(named)

    def keys(self):
        return vars(self).keys()

    def items(self):
        return vars(self).items()


@pytest.fixture
def job(tmp_path, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):  # put back afterwards, whatever the stage sets
        monkeypatch.setenv(name, "0")
    return SimpleNamespace(
        rule="train_sft",
        threads=1,
        wildcards=Named(experiment="demo", model="menagerie"),
        params=Named(code="abc", settings={"max_steps": 3}),
        output=Named(model=str(tmp_path / "sft"), provenance=str(tmp_path / "sft.json")),
        log=[str(tmp_path / "job.log")],
    )


def test_success_leaves_a_log_and_a_provenance_record(job, tmp_path, capsys):
    started = time.monotonic()
    with stage(job):
        time.sleep(0.1)
        print("\r10% loss 2.0\r20% loss 1.5", file=sys.stderr)
    elapsed = time.monotonic() - started
    record = json.loads((tmp_path / "sft.json").read_text())
    assert record["rule"] == "train_sft"
    assert record["params"]["settings"] == {"max_steps": 3}
    assert 0.1 <= record["wall_seconds"] <= elapsed + 0.01
    assert record["max_rss_mb"] == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, rel=0.1)
    assert record["versions"]["torch"].startswith("2.")
    assert "[train_sft menagerie] 20% loss 1.5\n" in capsys.readouterr().err
    assert "20% loss 1.5" in (tmp_path / "job.log").read_text()


def test_bad_input_is_one_line_a_status_and_no_record(job, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught, stage(job):
        raise InputError("column 'chosen' is missing")
    assert caught.value.code == 1
    assert capsys.readouterr().err == "[train_sft menagerie] error: column 'chosen' is missing\n"
    assert not (tmp_path / "sft.json").exists()


def test_a_bug_leaves_its_traceback_in_the_log(job, tmp_path):
    with pytest.raises(ZeroDivisionError), stage(job):
        1 / 0  # noqa: B018
    assert "ZeroDivisionError" in (tmp_path / "job.log").read_text()


@pytest.mark.parametrize(
    ("rule", "offline"),
    [("train_sft", "1"), ("tokenise", "1"), ("download_published_reward", "0"), ("judge_responses", "0")],
)
def test_only_what_downloads_or_judges_reaches_the_hub(job, rule, offline):
    job.rule = rule
    with stage(job):
        assert (os.environ["HF_HUB_OFFLINE"], os.environ["HF_DATASETS_OFFLINE"]) == (offline, offline)


def test_launching_calls_the_function_with_paths(tmp_path):
    (tmp_path / "a").write_text("x")
    launch("shutil:copyfile", {"src": tmp_path / "a", "dst": tmp_path / "b"})
    assert (tmp_path / "b").read_text() == "x"


@pytest.fixture
def importable(monkeypatch):
    """Launched processes find the package and tests/helpers, and run from the repository's root, as jobs do."""
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root / "workflow"), str(root / "tests/helpers")]))


def test_two_devices_run_the_function_together(importable, tmp_path):
    settings = {"max_steps": 3, "checkpoints": [0, 3], "kl_target": None}
    arguments = {"output": tmp_path, "objective": bind("cppo_top", {"lambda": 0.3}), "settings": settings}
    launch("tiny_stage:report", arguments, devices=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert (first["objective"], first["parameters"], first["settings"]) == ("cppo_top", {"lambda": 0.3}, settings)
    assert (first["total"], first["sharded"]) == (3, "true")


def test_a_failure_on_two_devices_is_an_error_and_its_message_is_in_the_log(importable, job, tmp_path, capsys):
    with pytest.raises(SystemExit), stage(job):
        launch("tiny_stage:refuse", {"output": tmp_path}, devices=2)
    assert f"error: {tmp_path} is no place for a model" in (tmp_path / "job.log").read_text()
    assert (
        "error: tiny_stage:refuse failed with status 1 on 2 devices; the log has the reason" in capsys.readouterr().err
    )
    assert not (tmp_path / "sft.json").exists()


def test_what_cannot_be_handed_over_is_named():
    with pytest.raises(TypeError, match="of type set cannot be handed to another process"):
        launch("tiny_stage:report", {"settings": {1}}, devices=2)


def test_inputs_are_paths_without_the_records(job):
    job.input = Named(model="a", model_record="a.json", curves=["b", "c"], curves_record=["b.json", "c.json"])
    assert inputs_of(job) == {"model": Path("a"), "curves": [Path("b"), Path("c")]}

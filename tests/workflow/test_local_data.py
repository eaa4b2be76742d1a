"""The whole DAG without the embedded world: files in the hub's schemas, three architectures, a local judge."""

from __future__ import annotations

import html
import re
import shutil
from pathlib import Path

import hub_files
import pandas as pd
import pytest
import yaml
from checkout import ROOT, clone, edit, plan, snakemake

pytestmark = pytest.mark.e2e
ARCHITECTURES = ("gpt_neox", "llama", "qwen3")
SHORT = {
    "sft": {"epochs": None, "max_steps": 2, "batch_size": 4},
    "reward": {"epochs": None, "max_steps": 2, "batch_size": 4},
    "offline": {"max_steps": 2, "batch_size": 4, "checkpoints": [0, 2]},
    "online": {"max_steps": 1, "batch_size": 4, "max_new_tokens": 8, "checkpoints": [0, 1]},
}


def configuration() -> dict:
    """config/local.yaml with its lengths and filters, for three tiny models and a few steps."""
    config = yaml.safe_load((ROOT / "config/local.yaml").read_text())
    mine = config["models"].pop("mine")
    for name in ARCHITECTURES:
        parts = {part: {**mine[part], **changes} for part, changes in SHORT.items()}
        published = {"source": "hub", "name": f"local/{name}_reward"}
        own = {"reward": parts["reward"] if name == "gpt_neox" else published}
        config["models"][name] = {**parts, **own, "base": {**mine["base"], "name": f"local/{name}", "parameters": 9000}}
    config["runs"]["ppo"] |= {"models": ["gpt_neox"], "probe": False}
    config["probe"] = {"samples": {"train": 6, "final": 6}, "batch_size": {"offline": 2, "online": 2}}
    config["probe"]["final_sets"] = {"offline": ["heldout"]}
    config["evaluation"]["max_new_tokens"] = 8
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    root = clone(tmp_path_factory.mktemp("local") / "clone")
    hub_files.write_data(root / "local")
    for seed, name in enumerate(ARCHITECTURES):
        hub_files.write_model(root / "local" / name, name, seed=seed)
        if name != "gpt_neox":
            hub_files.write_model(root / "local" / f"{name}_reward", name, scorer=True, seed=seed)
    (root / "config/mini.yaml").write_text(yaml.safe_dump(configuration()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        done = snakemake(root, "--quiet", "rules", "--show-failed-logs", config="mini")
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    return root


@pytest.fixture
def replaced(finished, tmp_path):
    """Puts a new text in place of a file, and the old one back."""
    kept = []

    def replace(name, change):
        path = finished / name
        kept.append((path, shutil.copy2(path, tmp_path / str(len(kept)))))
        change(path)

    yield replace
    for path, copy in kept:
        shutil.copy2(copy, path)


def counts(root: Path) -> pd.Series:
    table = pd.read_csv(root / "results/local/tables/data_counts.csv").fillna({"model": ""})
    return table.set_index(["data_set", "model", "step", "reason"])["rows"]


def test_every_odd_row_is_counted_and_stops_nothing(finished):
    found = counts(finished)
    read = {"used": 27, "empty text": 2, "identical answers": 1, "roles": 1}
    assert found["preferences", "", "read"].to_dict() == read
    assert found["sft", "", "read"].to_dict() == {"used": 13, "no answer": 1, "roles": 1}
    assert found["final_prompts", "", "read"]["repeated prompt"] == 1
    for model in ARCHITECTURES:
        tokens = {"used": 25, "prompt too long": 1, "special token": 1}
        assert found["preferences", model, "tokens"].to_dict() == tokens
        assert found["preferences", model, "offline"].to_dict() == {"used": 24, "prompt too long": 1, "cut": 1}
        online = {"used": 22, "prompt too long": 2, "repeated prompt": 1}
        assert found["preferences", model, "online"].to_dict() == online
        assert found["sft", model, "sft"].to_dict() == {"used": 13, "cut": 1}
    assert found["preferences", "gpt_neox", "reward"].to_dict() == {"used": 23, "too long": 2}


def test_the_report_tells_of_the_data(finished):
    page = html.unescape(re.sub(r"<[^>]+>", " ", (finished / "results/local/report.html").read_text()))
    page = " ".join(page.split())
    assert "prompt too long 1, special token 1" in page
    assert "Of 6 prompts of eval_prompts, 1 are prompts of final_prompts too, and 1 begin with the same message" in page
    sources = pd.read_csv(finished / "results/local/tables/data_sources.csv").set_index("data_set")
    assert sources.loc["preferences", "path"] == "local/preferences.jsonl"
    assert sources["sha256"].str.len().eq(64).all()


def test_all_architectures_are_trained_probed_and_judged(finished):
    rates = pd.read_csv(finished / "results/local/tables/win_rates.csv")
    assert set(rates["model"]) == set(ARCHITECTURES)
    assert rates["n_missing"].eq(0).all()
    dynamics = pd.read_parquet(finished / "results/local/tables/dynamics.parquet")
    assert set(dynamics["model"]) == set(ARCHITECTURES)
    assert dynamics["G"].notna().any()


def test_nothing_is_left_to_do(finished):
    assert plan(finished, config="mini") == {}
    for path in (finished / "local").rglob("*"):
        path.touch()
    assert plan(finished, config="mini") == {}


def test_replaced_data_plan_what_follows(finished, replaced):
    replaced("local/preferences.jsonl", lambda path: edit(path, "dense", "tense"))
    planned = plan(finished, config="mini")
    assert planned["download_data"] == 1
    assert planned["tokenise"] == 12
    assert planned["train_offline"] == 3
    assert "download_base" not in planned


def test_a_replaced_base_model_plans_its_own(finished, replaced):
    replaced("local/llama/model.safetensors", lambda path: hub_files.write_model(path.parent, "llama", seed=9))
    planned = plan(finished, config="mini")
    assert (planned["download_base"], planned["train_offline"], planned["tokenise"]) == (1, 1, 4)
    assert "download_data" not in planned


def test_a_replaced_reward_model_plans_its_own(finished, replaced):
    file = "local/qwen3_reward/model.safetensors"
    replaced(file, lambda path: hub_files.write_model(path.parent, "qwen3", scorer=True, seed=9))
    planned = plan(finished, config="mini")
    assert (planned["download_published_reward"], planned["normalise_reward"]) == (1, 1)
    assert "train_offline" not in planned
    assert planned["respond_run"] == 1


def test_a_replaced_judge_is_asked_again(finished, replaced):
    replaced("workflow/judges/keywords/verdict.py", lambda path: edit(path, "math.sqrt(len(said) + 1)", "1"))
    planned = plan(finished, config="mini")
    assert planned["judge_responses"] == 7  # of base models and runs
    assert not {"respond_run", "train_offline", "tokenise"} & set(planned)

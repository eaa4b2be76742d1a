"""The whole DAG on the smoke configuration, and what it would rerun after a change."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from checkout import ROOT, clone, edit, plan, snakemake
from po_dynamics.harness import config as configuration

pytestmark = pytest.mark.e2e
RUNS = configuration.load(yaml.safe_load((ROOT / "config/smoke.yaml").read_text())).runs.values()


@pytest.fixture(scope="session")
def results(tmp_path_factory) -> Path:
    """A clone in which the smoke configuration has run from nothing."""
    directory = clone(tmp_path_factory.mktemp("workflow") / "clone")
    done = snakemake(directory, "--quiet", "rules", "--show-failed-logs")
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    return directory


@pytest.fixture
def copied(results, tmp_path) -> Path:
    """A copy of that clone; every file has a new modification time, and not in the order in which it was made."""
    return Path(shutil.copytree(results, tmp_path / "copy", copy_function=shutil.copyfile))


def test_every_target_is_there(results):
    smoke = results / "results/smoke"
    assert (smoke / "report.html").stat().st_size > 50_000
    for name in ("figure_1_dpo", "figure_2_ppo", "figure_3_ppo", "figure_4", "training_cdpo", "training_ppo"):
        assert (smoke / f"figures/menagerie/{name}.png").stat().st_size > 5_000
    assert (smoke / "figures/bandit.png").stat().st_size > 5_000
    assert set(pd.read_csv(smoke / "tables/bandit_claims.csv")["model"]) == {"bandit"}
    target = pd.read_csv(smoke / "tables/target.csv")
    compared = {(run.name, step) for run in RUNS if run.target for step in run.steps}
    assert set(zip(target["run"], target["step"], strict=True)) == compared | {("sft", 0)}
    assert target[target["own_tau"]].groupby("run")["tau"].first().to_dict() == {"ppo": 0.1, "pra": 0.5, "rda": 0.5}
    assert (smoke / "figures/menagerie/target.png").stat().st_size > 5_000
    assert set(pd.read_csv(smoke / "tables/target_claims.csv")["model"]) == {"menagerie"}
    win_rates = pd.read_csv(smoke / "tables/win_rates.csv")
    assert set(win_rates["run"]) == {"base", *(run.name for run in RUNS)}
    assert "cppo_top_lambda-0.3" in set(win_rates["run"])
    assert win_rates["n_missing"].eq(0).all()
    assert win_rates["order_consistency"].eq(100).all()


def test_identities_hold_in_every_row_of_the_dynamics(results):
    """PAPER §1: TOT = POS + NEG = TOP + MID + BOT, filtered too; segments sum to the whole model, with all samples."""
    table = pd.read_parquet(results / "results/smoke/tables/dynamics.parquet")
    keys = ["model", "run", "seed", "step", "final_set", "filtered"]
    whole = table[table["segment"] == "all"].set_index([*keys, "component"])["G"].unstack()
    scale = whole.abs().max(axis=1)
    assert len(whole) == 2 * sum(len(run.steps) for run in RUNS if run.final_sets)  # filtered or not
    assert ((whole["TOT"] - whole["POS"] - whole["NEG"]).abs() <= 1e-9 * scale).all()
    assert ((whole["TOT"] - whole["TOP"] - whole["MID"] - whole["BOT"]).abs() <= 1e-9 * scale).all()
    segments = table[(table["segment"] != "all") & ~table["filtered"]]  # segments know no outliers of D′
    summed = segments.groupby([*keys, "component"])["G"].sum().unstack()
    assert ((summed - whole.loc[summed.index, summed.columns]).abs().max(axis=1) <= 1e-5 * scale[summed.index]).all()
    assert (table["reverse_forward_rel_diff"] < 1e-3).all()


def test_only_runs_that_read_rewards_carry_them(results):
    run = results / "results/smoke/menagerie"
    rewards = pd.read_parquet(run / "rewards.parquet").set_index("id")
    for name, carries in (("rda", True), ("dpo", False)):
        scores = pd.read_parquet(run / f"{name}/seed0/probe/heldout/step-3/scores.parquet")
        assert ("reward" in scores) == carries
        if carries:
            chosen = scores[scores["role"] == "chosen"]
            assert (chosen["reward"].to_numpy() == rewards.loc[chosen["sample_id"], "chosen_reward"].to_numpy()).all()


def test_a_second_run_does_nothing(results):
    done = snakemake(results)
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout + done.stderr


def test_touching_or_copying_reruns_nothing(copied):
    assert plan(copied) == {}
    for path in sorted(copied.rglob("*"), reverse=True):
        if ".snakemake" not in path.parts:
            path.touch()
    assert plan(copied) == {}


def test_comments_and_docstrings_rerun_nothing(copied):
    edit(copied / "workflow/po_dynamics/objectives/pairs.py", '"""', '"""Reworded. ')
    with (copied / "workflow/po_dynamics/ppo/train.py").open("a") as file:
        file.write("\n# A remark.\n")
    assert plan(copied) == {}


def test_changing_one_runs_beta_reruns_that_run(copied):
    edit(copied / "config/smoke.yaml", "probe: true, parameters: {beta: 0.1}", "probe: true, parameters: {beta: 0.2}")
    planned = plan(copied)
    once = ("train_offline", "respond_run", "judge_responses", "probe_offline")
    assert [planned[rule] for rule in once] == [1] * len(once)
    assert not {"train_online", "train_reward", "compute_reference", "sample_preferences"} & set(planned)


def test_deleting_one_table_rebuilds_it(copied):
    (copied / "results/smoke/tables/win_rates.csv").unlink()
    assert set(plan(copied)) == {"tabulate_win_rates", "draw_figure", "write_report"}


def test_the_same_seed_gives_identical_results(results, tmp_path):
    """Everything that is computed for a run of each family, from nothing."""
    again = clone(tmp_path / "again")
    runs = [f"results/smoke/menagerie/{run}/seed0" for run in ("dpo", "ppo")]
    targets = [f"{run}/{result}" for run in runs for result in ("probe/heldout", "evaluation/0/annotations.parquet")]
    done = snakemake(again, *targets, "--quiet", "rules", "--show-failed-logs")
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    made = [path for run in runs for path in (again / run).rglob("*") if path.suffix in (".csv", ".parquet")]
    made += [path for run in runs for path in (again / run).rglob("*.safetensors")]
    assert len(made) > 30
    for path in made:
        assert path.read_bytes() == (results / path.relative_to(again)).read_bytes(), path


def test_the_same_results_give_identical_tables(results, copied):
    folder = copied / "results/smoke/tables"
    tables = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".csv", ".parquet")}
    done = snakemake(copied, "--quiet", "rules", "--forcerun", "tabulate_dynamics", "tabulate_win_rates")
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    assert {"win_rates.csv", "results.csv", "dynamics.parquet"} <= set(tables)
    for name, content in tables.items():
        assert (folder / name).read_bytes() == content, name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("runs={dpo: {objective: dpoo}}", r"error: configuration key 'runs\.dpo': .*dpoo.*cdpo"),
        (
            "keep_checkpoint=true",
            r"error: configuration key 'keep_checkpoint' is unknown; allowed here: .*keep_checkpoints",
        ),
    ],
)
def test_a_wrong_configuration_is_one_line_and_changes_nothing(tmp_path, override, message):
    directory = clone(tmp_path / "clone")
    done = snakemake(directory, "--config", override)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert re.search(message, errors[0])
    assert not (directory / "results").exists()


@pytest.mark.parametrize(("over", "trainings"), [([], 80), (["paper-two-epochs"], 11), (["paper-qwen-base"], 27)])
def test_the_papers_configuration_passes_a_dry_run(tmp_path, over, trainings):
    directory = clone(tmp_path / "clone")
    files = [f"config/{name}.yaml" for name in ("paper", *over)]
    command = [sys.executable, "-m", "snakemake", "-n", "--quiet", "rules", "--configfile", *files]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    planned = dict(re.findall(r"^(train_o\w+) +(\d+)$", done.stdout + done.stderr, flags=re.MULTILINE))
    assert sum(map(int, planned.values())) == trainings


def test_the_validation_passes_a_dry_run_and_plans_nothing_elsewhere(tmp_path):
    directory = clone(tmp_path / "clone")

    def plan(*arguments):
        command = [sys.executable, "-m", "snakemake", "-n", *arguments, "--quiet", "rules"]
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    status, planned = plan("validate", "--configfile", "config/validation.yaml")
    assert status == 0, planned
    for rule, jobs in {"retrain_offline_without": 6, "retrain_online_without": 6, "train_halves": 4}.items():
        assert re.search(rf"{rule} +{jobs}\b", planned), planned
    assert "judge_responses" not in planned  # of checkpoints; the intervals judge their own
    status, planned = plan("--configfile", "config/smoke.yaml")
    assert status == 0
    assert not re.search(r"^(retrain_\w+|train_halves|\w*validat\w*) +\d", planned, re.MULTILINE), planned

"""Configurations: every shipped one is valid, and every mistake is named with its key, value and way out."""

import copy
import json
from pathlib import Path

import pytest
import yaml
from po_dynamics.errors import InputError
from po_dynamics.harness import config as configuration
from po_dynamics.ppo.division import group_size
from po_dynamics.settings.online import Online
from pydantic import create_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def demo():
    return yaml.safe_load((ROOT / "config/config.yaml").read_text())


@pytest.mark.parametrize("file", sorted((ROOT / "config").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configurations_are_valid(file):
    experiment = configuration.load(yaml.safe_load(file.read_text()))
    assert all(run.steps for run in experiment.runs.values())


def test_paper_states_the_papers_settings():
    paper = configuration.load(yaml.safe_load((ROOT / "config/paper.yaml").read_text()))
    assert set(paper.config["models"]) == {"pythia-2.8b", "qwen3-1.7b", "llama3-8b"}
    pythia = paper.runs["pythia-2.8b", "dpo"]
    assert (pythia.objective.parameters["beta"], pythia.settings["batch_size"], pythia.settings["learning_rate"]) == (
        0.1,
        32,
        5e-7,
    )
    swept = {
        (r.objective.parameters["t1"], r.objective.parameters["t2"])
        for (m, _), r in paper.runs.items()
        if (m, r.objective.name) == ("pythia-2.8b", "cdpo")
    }
    assert swept == {(2500, 5500), (2500, 6500), (3000, 8000)}
    assert paper.runs["pythia-2.8b", "dpo_no_pos"].steps[0] == 6000
    assert len(paper.runs["qwen3-1.7b", "ppo"].seeds) == 5


@pytest.mark.parametrize("file", sorted((ROOT / "config").glob("*.yaml")), ids=lambda p: p.stem)
def test_trainers_take_the_settings_of_shipped_runs(file):
    runs = configuration.load(yaml.safe_load(file.read_text())).runs.values()
    assert {run.family for run in runs} == {"offline", "online"}
    for run in runs:
        settings = configuration.TRAINING[run.family].of(run.settings)
        assert settings.resolved() == run.settings
        if isinstance(settings, Online):
            group_size(settings, run.objective)


@pytest.mark.parametrize("file", sorted((ROOT / "config").glob("*.yaml")), ids=lambda p: p.stem)
def test_resolved_configuration_is_json_and_resolves_to_itself(file):
    config = configuration.load(yaml.safe_load(file.read_text())).config
    assert configuration.load(json.loads(json.dumps(config))).config == config
    assert not [key for key in config if key.startswith("x-")]


def test_settings_of_a_run_are_defaults_model_and_overrides(demo):
    del demo["models"]["menagerie"]["offline"]["lr_schedule"]
    demo["runs"]["dpo"]["training"] = {"batch_size": 64}
    runs = configuration.load(demo).runs
    settings, other = runs["menagerie", "dpo"].settings, runs["menagerie", "dpo_no_neg"].settings
    assert (settings["lr_schedule"], settings["warmup_ratio"], settings["weight_decay"]) == ("linear", 0.04, 0.01)
    assert (settings["batch_size"], settings["micro_batch_size"]) == (64, 64)  # the second by default the first
    assert other["batch_size"] == 32
    assert settings["checkpoints"] == [0, 25, 50, 125, 175, 250]


@pytest.mark.parametrize("file", sorted((ROOT / "config").glob("*.yaml")), ids=lambda path: path.stem)
def test_all_runs_of_a_family_share_their_checkpoints(file):
    """Best checkpoints of runs with other grids do not compare."""
    grids = {}
    for run in configuration.load(yaml.safe_load(file.read_text())).runs.values():
        grids.setdefault((run.model, run.family), set()).add(tuple(run.settings["checkpoints"]))
    assert {len(different) for different in grids.values()} == {1}


def test_a_default_that_a_run_gives_itself_or_does_not_have_changes_nothing(demo, monkeypatch):
    before = configuration.load(demo).runs
    for default in ("kl_horizon", "kl_coefficient"):
        field = Online.model_fields[default].asdict()
        changed = create_model("Other", __base__=Online, **{default: (field["annotation"], 7)})
        monkeypatch.setitem(configuration.TRAINING, "online", changed)
        after = configuration.load(demo).runs
        edited = {name for name in before if before[name].settings != after[name].settings}
        online = {name for name in before if before[name].family == "online"}
        assert edited == (online if default == "kl_horizon" else set())


def edit(config, path, value):
    """A copy with the dotted key set to value, or deleted when value is `...`."""
    config = copy.deepcopy(config)
    *parents, key = path.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    if value is ...:
        del node[key]
    else:
        node[key] = value
    return config


PUBLISHED = {"source": "hub"} | {
    name: {"path": "a"} for name in ("sft", "preferences", "final_prompts", "eval_prompts")
}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("runs.dpo.objective", "dpoo", r"runs\.dpo.*dpoo.*cdpo"),
        ("runs.dpo.seedz", [0], r"'runs\.dpo\.seedz' is unknown; allowed here: .*seeds"),
        ("runs.dpo.parameters.betta", 1, r"runs\.dpo.*betta.*beta"),
        ("runs.dpo.training", {"learning_rat": 1}, r"'runs\.dpo\.training\.learning_rat' is unknown.*learning_rate"),
        (
            "models.menagerie.offline.learning_rate",
            -1,
            r"'models\.menagerie\.offline\.learning_rate' is -1; .* greater than 0",
        ),
        (
            "models.menagerie.offline.precision",
            "fp8",
            r"'models\.menagerie\.offline\.precision' is 'fp8'; .* fp32, bf16",
        ),
        ("models.menagerie.online.top_p", 1.5, r"top_p' is 1\.5; it must be at most 1"),
        ("models.menagerie.base.layerz", 2, r"'models\.menagerie\.base\.layerz' is unknown"),
        ("models.menagerie.offline.checkpoints", [0, 9999], r"9999.*max_steps, 250"),
        ("models.menagerie.sft", ..., r"'models\.menagerie\.sft' is missing"),
        ("models.menagerie.base.source", ..., r"'models\.menagerie\.base\.source' is missing"),
        ("models.menagerie.base.source", "moon", r"'models\.menagerie\.base\.source' is 'moon'; .* one of world, hub"),
        ("models.menagerie.base.hidden_size", 97, r"base\.hidden_size' is 97; it must be a multiple of heads, 4"),
        ("models.menagerie.sft.max_steps", ..., r"'models\.menagerie\.sft\.max_steps' is None; .* or epochs"),
        ("models.menagerie.reward.kind", "armorm", r"'models\.menagerie\.reward\.kind' is unknown"),
        (
            "models.menagerie.offline.micro_batch_size",
            5,
            r"offline\.batch_size' is 32; .* multiple of micro_batch_size, 5",
        ),
        ("models.menagerie.online.mini_batches", 3, r"online\.batch_size' is 32; .* multiple of mini_batches, 3"),
        ("models.menagerie.online.gamma", float("nan"), r"gamma' is nan; it must be a finite number"),
        ("models.menagerie.online.whiten_rewards", 1, r"whiten_rewards' is 1; it must be of type boolean"),
        ("models.menagerie.online.max_steps", True, r"max_steps' is True; it must be of type integer"),
        ("data", {"source": "hub", "sft": {"path": "a"}}, r"'data\.preferences' is missing"),
        ("data", PUBLISHED, r"'evaluation\.judge' is 'gold'; it must be a judge of real text"),
        ("runs.dpo.training", {"batch_size": 64, "micro_batch_size": 48}, r"'runs\.dpo\.training\.batch_size' is 64"),
        ("runs.dpo.training", {"max_steps": 100}, r"'runs\.dpo\.training\.checkpoints' is 250; .* max_steps, 100"),
        ("runs.dpo.init", "stf", r"'runs\.dpo\.init' is 'stf'; it must be one of sft, base or of type object"),
        ("runs.dpo.init", {"run": "dpo"}, r"'runs\.dpo\.init\.step' is missing"),
        ("runs.dpo.seeds", [0, 0], r"'runs\.dpo\.seeds' is \[0, 0\]; it must be a list without repetition"),
        ("runs.dpo.seeds", [0, -1], r"'runs\.dpo\.seeds\.1' is -1; it must be at least 0"),
        ("runs.dpo.seeds", [], r"'runs\.dpo\.seeds' is \[\]; it must be of at least 1 entries"),
        ("runs.dpo.seeds", 3, r"'runs\.dpo\.seeds' is 3; it must be of type array"),
        ("runs.sft", {"objective": "dpo"}, r"'runs\.sft' is 'sft'; it must be another name than base, sft"),
        ("runs.a/b", {"objective": "dpo"}, r"'runs\.a/b' is 'a/b'; it must be a text that matches"),
        ("runs", {}, r"'runs' is \{\}; it must be of at least 1 entries"),
        ("probe.batch_size", 3, r"'probe\.batch_size' is 3; it must be of type object"),
        ("probe.apart", ["TOT"], r"'probe\.apart' is unknown; allowed here: .*separate"),
        ("probe.samples.train", "many", r"'probe\.samples\.train' is 'many'; it must be of type integer"),
        ("runs.dpo.models", ["gpt"], r"'runs\.dpo\.models' is 'gpt'; it must be one of menagerie"),
        ("runs.dpo_no_pos.init", {"run": "nope", "step": 175}, r"nope.*run of the same family"),
        ("runs.dpo_no_pos.init", {"run": "dpo", "step": 170}, r"170.*checkpoint of dpo"),
        ("target.runs", ["dpoo"], r"'target\.runs' is 'dpoo'; it must be a run: dpo, cdpo"),
        ("target.runs", ["dpo", "cdpo"], r"'target\.runs' is 'cdpo'; it must be a run: dpo, cdpo_t1-75"),
        ("runs.dpo.init", "base", r"'target\.runs' is 'dpo'; .* starts from the SFT model"),
        ("runs.ppo.training", {"kl_coefficient": 0.0}, r"'target\.runs' is 'ppo'; .* temperature: beta, or a kl_c"),
        ("target.least_ess", 0.5, r"'target\.least_ess' is 0\.5; it must be at least 1"),
        ("experiment", "../etc", r"'experiment' is '\.\./etc'"),
        ("seed", 1, r"'seed' is unknown"),
    ],
)
def test_mistakes_are_named(demo, path, value, message):
    with pytest.raises(InputError, match=message) as caught:
        configuration.load(edit(demo, path, value))
    assert "\n" not in str(caught.value)


def test_sweep_makes_one_run_per_item_named_by_what_it_sets(demo):
    demo["runs"] = {"cppo_top": {"objective": "cppo_top", "sweep": [{"lambda": 0.3}, {"lambda": 0.7}]}}
    demo["target"] = {"runs": ["cppo_top_lambda-0.7"]}
    runs = configuration.load(demo).runs
    assert [name for _, name in runs] == ["cppo_top_lambda-0.3", "cppo_top_lambda-0.7"]
    assert [run.objective.parameters["lambda"] for run in runs.values()] == [0.3, 0.7]
    assert [run.target for run in runs.values()] == [False, True]


def test_a_target_has_the_temperature_of_its_run(demo):
    demo["runs"]["rda"]["parameters"]["beta"] = 0.3
    runs = configuration.load(demo).runs
    assert {name: run.temperature for (_, name), run in runs.items() if run.target} == {
        "dpo": 0.1,
        "rda": 0.3,
        "ppo": 0.1,
    }
    del demo["target"]
    assert not any(run.target for run in configuration.load(demo).runs.values())


def test_chunks_cover_every_checkpoint_once(demo):
    demo["evaluation"]["checkpoints_per_job"] = 4
    experiment = configuration.load(demo)
    chunks = experiment.chunks("menagerie", "dpo")
    assert [step for chunk in chunks for step in chunk] == experiment.runs["menagerie", "dpo"].steps
    assert max(map(len, chunks)) == 4


@pytest.mark.parametrize("name", ["ra", "ra_posterior"])
def test_an_objective_that_needs_log_z_is_refused(demo, name):
    demo["runs"]["mine"] = {"objective": name, "parameters": {"beta": 0.1}}
    with pytest.raises(InputError, match=rf"'runs.mine.objective' is '{name}'; it must be an .* no log Z.*: rda, "):
        configuration.load(demo)
    demo["runs"]["mine"]["objective"] = "rda"
    assert configuration.load(demo).runs["menagerie", "mine"].objective.needs == ("rewards",)


def test_a_base_model_of_the_world_needs_its_data(demo):
    demo |= {"data": PUBLISHED, "evaluation": {"judge": "mine"}}
    with pytest.raises(InputError, match=r"'models\.menagerie\.base\.source' is 'world'; it must be hub, as data"):
        configuration.load(demo)

"""Configurations: every shipped one is valid, and every mistake is named with its key, value and way out."""

import copy
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from po_dynamics.errors import InputError
from po_dynamics.harness import config as configuration
from po_dynamics.objectives.registry import bind
from po_dynamics.ppo.settings import PPOSettings

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
    assert (pythia.parameters["beta"], pythia.settings["batch_size"], pythia.settings["learning_rate"]) == (
        0.1,
        32,
        5e-7,
    )
    swept = {
        (r.parameters["t1"], r.parameters["t2"])
        for (m, _), r in paper.runs.items()
        if (m, r.objective) == ("pythia-2.8b", "cdpo")
    }
    assert swept == {(2500, 5500), (2500, 6500), (3000, 8000)}
    assert paper.runs["pythia-2.8b", "dpo_no_pos"].steps[0] == 6000
    assert len(paper.runs["qwen3-1.7b", "ppo"].seeds) == 5


def test_online_settings_of_the_schema_are_those_of_the_trainer():
    schema = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())["$defs"]["online"]
    known = {field.name for field in fields(PPOSettings)}
    assert set(schema["properties"]) == known


@pytest.mark.parametrize("file", sorted((ROOT / "config").glob("*.yaml")), ids=lambda p: p.stem)
def test_trainer_takes_online_settings_of_shipped_configurations(file):
    runs = configuration.load(yaml.safe_load(file.read_text())).runs.values()
    online = [run for run in runs if run.family == "online"]
    for run in online:
        assert PPOSettings.of(run.settings).batch_size == run.settings["batch_size"]
        PPOSettings.of(run.settings).group_size(bind(run.objective, run.parameters))
    assert online


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
        ("data.sft", ..., r"'data\.sft' is missing"),
        ("probe.samples", "many", r"'probe\.samples' is 'many'; it must be of type integer"),
        ("runs.dpo.models", ["gpt"], r"'runs\.dpo\.models' is 'gpt'; it must be one of menagerie"),
        ("runs.dpo_no_pos.init", {"run": "nope", "step": 175}, r"nope.*run of the same family"),
        ("runs.dpo_no_pos.init", {"run": "dpo", "step": 170}, r"170.*checkpoint of dpo"),
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
    runs = configuration.load(demo).runs
    assert [name for _, name in runs] == ["cppo_top_lambda-0.3", "cppo_top_lambda-0.7"]
    assert [run.parameters["lambda"] for run in runs.values()] == [0.3, 0.7]


def test_chunks_cover_every_checkpoint_once(demo):
    demo["evaluation"]["checkpoints_per_job"] = 4
    experiment = configuration.load(demo)
    chunks = experiment.chunks("menagerie", "dpo")
    assert [step for chunk in chunks for step in chunk] == experiment.runs["menagerie", "dpo"].steps
    assert max(map(len, chunks)) == 4

"""Configurations: every shipped one is valid, and every mistake is named with its key, value and way out."""

import copy
import json
from pathlib import Path

import pytest
import torch
import yaml
from po_dynamics.errors import InputError
from po_dynamics.harness import config as configuration
from po_dynamics.objectives.registry import SPECIAL_CASES, bind, canonical
from po_dynamics.objectives.tokens import Tokens
from po_dynamics.ppo.division import group_size
from po_dynamics.settings.online import Online
from pydantic import create_model
from snakemake.utils import update_config

ROOT = Path(__file__).parents[2]


SHIPPED = sorted(file.stem for file in (ROOT / "config").glob("*.yaml"))


def shipped(name):
    """A configuration of config/; what is called paper-… is merged over the paper's, as Snakemake does it."""
    merged = {}
    for stem in ("paper", name) if name.startswith("paper-") else (name,):
        update_config(merged, yaml.safe_load((ROOT / f"config/{stem}.yaml").read_text()))
    return merged


@pytest.fixture
def demo():
    return shipped("config")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configurations_are_valid(name):
    experiment = configuration.load(shipped(name))
    assert all(run.steps for run in experiment.runs.values())


def test_paper_states_the_papers_settings():
    paper = configuration.load(shipped("paper"))
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


def test_paper_has_no_penalty_and_no_scale_that_the_paper_has_not():
    paper = configuration.load(shipped("paper"))
    for model in paper.config["models"].values():
        assert model["reward"]["normalise"] is False
    online = [run.settings for run in paper.runs.values() if run.family == "online"]
    assert {settings["missing_eos_penalty"] for settings in online} == {None}
    assert {(s["value_coefficient"], s["adam_epsilon"], s["kl_coefficient"]) for s in online} == {(0.1, 1e-8, 0.05)}


def test_paper_probes_what_the_paper_probes():
    """Figures 1, 2, 3, 7b, 8 and 10: DPO and PPO of Pythia and Qwen, DPO without SFT; training prompts for 7b alone."""
    runs = configuration.load(shipped("paper")).runs
    probed = {key: run.final_sets for key, run in runs.items() if run.final_sets}
    assert probed == {
        ("pythia-2.8b", "dpo"): ("heldout", "train"),
        ("qwen3-1.7b", "dpo"): ("heldout",),
        ("pythia-2.8b", "ppo"): ("heldout",),
        ("qwen3-1.7b", "ppo"): ("heldout",),
        ("pythia-2.8b", "dpo_no_sft"): ("heldout",),
    }


def test_two_epochs_keep_the_proportions_of_the_figures():
    figures, text = (configuration.load(shipped(name)) for name in ("paper", "paper-two-epochs"))
    assert {model for model, _ in text.runs} == {"pythia-2.8b"}
    assert {run.family for run in text.runs.values()} == {"offline"}
    share = 3820 / 9000
    for run in ("dpo", "dpo_no_pos"):
        expected = [round(share * step) for step in figures.runs["pythia-2.8b", run].steps]
        assert text.runs["pythia-2.8b", run].steps == expected
    schedules = [
        sorted(
            (run.objective.parameters["t1"], run.objective.parameters["t2"])
            for (model, _), run in experiment.runs.items()
            if (model, run.objective.name) == ("pythia-2.8b", "cdpo")
        )
        for experiment in (figures, text)
    ]
    assert schedules[1] == [(round(share * t1), round(share * t2)) for t1, t2 in schedules[0]]
    assert figures.config["models"]["pythia-2.8b"]["sft"] == text.config["models"]["pythia-2.8b"]["sft"]


def test_both_readings_of_qwen_can_be_named():
    names = [
        configuration.load(shipped(name)).config["models"]["qwen3-1.7b"]["base"]["name"]
        for name in ("paper", "paper-qwen-base")
    ]
    assert names == ["Qwen/Qwen3-1.7B", "Qwen/Qwen3-1.7B-Base"]


@pytest.mark.parametrize("name", SHIPPED)
def test_trainers_take_the_settings_of_shipped_runs(name):
    runs = configuration.load(shipped(name)).runs.values()
    for run in runs:
        settings = configuration.TRAINING[run.family].of(run.settings)
        assert settings.resolved() == run.settings
        if isinstance(settings, Online):
            group_size(settings, run.objective)


@pytest.mark.parametrize("name", SHIPPED)
def test_resolved_configuration_is_json_and_resolves_to_itself(name):
    config = configuration.load(shipped(name)).config
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


@pytest.mark.parametrize("name", SHIPPED)
def test_all_runs_of_a_family_share_their_checkpoints(name):
    """Best checkpoints of runs with other grids do not compare."""
    grids = {}
    for run in configuration.load(shipped(name)).runs.values():
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


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("validation.left_out", {"dop": [25]}, r"'validation\.left_out\.dop' is 'dop'; .* of menagerie: dpo, ppo"),
        (
            "validation.left_out",
            {"dpo": [30]},
            r"'validation\.left_out\.dpo' is 30; .* before the last: \[10, 25, 50, 75\]",
        ),
        ("validation.left_out", {"dpo": [100]}, r"'validation\.left_out\.dpo' is 100"),
        ("validation.left_out", {"ppo": [0]}, r"'validation\.left_out\.ppo' is 0; .*\[6, 12, 18\]"),
        ("models.menagerie.offline.lr_schedule", "cosine", r"left_out\.dpo: lr_schedule' is 'cosine'; .* constant"),
        ("models.menagerie.offline.warmup_ratio", 0.3, r"'validation\.left_out\.dpo' is 25; .*\[50, 75\]"),
        ("runs.dpo.probe", False, r"'validation\.left_out\.dpo' is 'dpo'; it must be a run of dpo or ppo, probed"),
        ("runs.dpo.objective", "ipo", r"'validation\.left_out\.dpo' is 'dpo'; it must be a run of dpo or ppo, probed"),
        ("validation.halves.run", "ppo", r"'validation\.halves\.run' is 'ppo'; .* of preference pairs"),
        ("validation.halves.subsets", 2, r"'validation\.halves\.subsets' is 2; .* at least 3"),
    ],
)
def test_a_validation_that_cannot_be_is_refused(path, value, message):
    config = yaml.safe_load((ROOT / "config/validation.yaml").read_text())
    with pytest.raises(InputError, match=message):
        configuration.load(edit(config, path, value))


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
        ("data", PUBLISHED, r"'models\.menagerie\.base\.source' is 'world'; it must be hub, as data"),
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
        (
            "runs.dpo.probe",
            {"gpt": ["heldout"]},
            r"'runs\.dpo\.probe' is 'gpt'; it must be by a model of .*: menagerie",
        ),
        ("runs.dpo.probe", {"menagerie": ["moon"]}, r"'runs\.dpo\.probe\.menagerie\.0' is 'moon'; .* heldout, train"),
        ("runs.dpo.probe", "yes", r"'runs\.dpo\.probe' is 'yes'; it must be of type boolean or of type object"),
        ("models.menagerie.reward.normalise", "no", r"reward\.normalise' is 'no'; it must be of type boolean"),
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
        "pra": 0.1,
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


@pytest.mark.parametrize(
    ("entry", "other"),
    [
        ({"objective": "dpo", "parameters": {"beta": 0.1}}, "dpo"),
        ({"objective": "cppo_top", "parameters": {"lambda": 0.0}}, "ppo_no_top"),  # Eq. 33 at λ = 0
        ({"objective": "ppo"}, "ppo"),  # ε by default, there stated
        ({"objective": "hppo", "sweep": [{"t3": 5, "tau": 0.05}]}, "hppo_t3-5_tau-0.05"),
    ],
)
def test_the_same_training_under_two_names_is_refused(demo, entry, other):
    demo["runs"]["again"] = entry
    with pytest.raises(InputError, match=rf"the runs '{other}' and 'again.*' of menagerie are the same training"):
        configuration.load(demo)
    demo["runs"]["again"] = entry | {"training": {"weight_decay": 0.5}}
    assert ("menagerie", other) in configuration.load(demo).runs


def test_objectives_that_are_a_special_case_have_its_coefficients():
    """What `canonical` says of names is so of numbers."""
    generator = torch.Generator().manual_seed(0)
    logps_BT, old_BT, advantages_BT = torch.randn(3, 4, 50, generator=generator, dtype=torch.float64)
    batch = Tokens(logps_BT, old_BT, advantages_BT, torch.ones(4, 50, dtype=torch.bool))
    for name, (general, fixed) in SPECIAL_CASES.items():
        one, other = bind(name, {"epsilon": 0.3})(batch, 7), bind(general, {"epsilon": 0.3, **fixed})(batch, 7)
        assert torch.equal(one.coefficient_BT, other.coefficient_BT)
        assert one.coefficient_BT.any()
        assert canonical(bind(name, {})) == canonical(bind(general, fixed))


def test_null_takes_a_run_or_a_model_away(demo):
    demo["runs"]["ppo_no_top"] = None
    demo["models"]["other"] = None
    experiment = configuration.load(demo)
    assert ("menagerie", "ppo_no_top") not in experiment.runs
    assert list(experiment.config["models"]) == ["menagerie"]


def test_probes_by_model_and_final_set(demo):
    demo["runs"]["dpo"]["probe"] = {"menagerie": ["train"]}
    demo["runs"]["ppo"]["probe"] = {}
    runs = configuration.load(demo).runs
    assert runs["menagerie", "dpo"].final_sets == ("train",)
    assert runs["menagerie", "ppo"].final_sets == ()
    demo["probe"]["final_sets"] = {"offline": ["heldout"]}
    with pytest.raises(
        InputError, match=r"'runs\.dpo\.probe\.menagerie' is 'train'; .* probe.final_sets.offline: held"
    ):
        configuration.load(demo)

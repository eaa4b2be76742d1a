"""Declarations: each key once, explained, with a default that its own bounds allow; schema and page in step."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from po_dynamics.errors import InputError
from po_dynamics.settings import __main__ as generator
from po_dynamics.settings.base import Settings
from po_dynamics.settings.data import HubData, WorldData
from po_dynamics.settings.experiment import Configuration
from po_dynamics.settings.models import Model, WorldBase
from po_dynamics.settings.online import Online
from po_dynamics.settings.probe import Probe
from po_dynamics.settings.training import Offline, Sft, Training
from pydantic import ValidationError

ROOT = Path(__file__).parents[2]
LENGTH = {"max_steps": 4, "batch_size": 8, "learning_rate": 1}
ONLINE = LENGTH | {"checkpoints": [4, 0]}


def declarations(base=Settings):
    for section in base.__subclasses__():
        yield section
        yield from declarations(section)


def test_schema_and_page_are_those_of_the_declarations():
    schema = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text(encoding="utf-8"))
    assert schema == generator.schema(), f"out of step: {generator.COMMAND}"
    assert (ROOT / "docs/settings.md").read_text(encoding="utf-8") == generator.page(), (
        f"out of step: {generator.COMMAND}"
    )


def test_a_section_that_the_page_has_no_place_for_is_noticed(monkeypatch):
    monkeypatch.delitem(generator.SECTIONS, "models.<model>.sft")
    with pytest.raises(ValueError, match="Sft"):
        generator.page()


@pytest.mark.parametrize("section", declarations(), ids=lambda section: section.__name__)
def test_every_key_is_explained(section):
    assert section.__doc__
    missing = [key for key, field in section.model_fields.items() if not field.description]
    assert not missing


def test_what_trainings_share_is_declared_once():
    for section in declarations(Training):
        assert not set(section.__annotations__) & set(Training.__annotations__)


def test_every_stated_default_is_allowed():
    assert Probe.of(Probe().resolved()) == Probe()
    for section in (WorldData, WorldBase):
        assert section.of(section.of({"source": "world"}).resolved()) == section.of({"source": "world"})
    for section, given in ((Sft, LENGTH), (Offline, ONLINE), (Online, ONLINE)):
        assert section.of(section.of(given).resolved()) == section.of(given)


def test_defaults_of_ppo_are_those_that_the_paper_page_states():
    assert "TRL's defaults: 4, 0.05 in the reward, 1, 0.95, 0.2" in (ROOT / "docs/paper.md").read_text(encoding="utf-8")
    ours = Online.of(ONLINE)
    assert (ours.epochs, ours.kl_coefficient, ours.gamma, ours.gae_lambda, ours.value_clip) == (4, 0.05, 1, 0.95, 0.2)


def test_a_default_may_be_another_key():
    assert Offline.of(ONLINE).micro_batch_size == 8
    assert Offline.of(ONLINE | {"micro_batch_size": 2}).micro_batch_size == 2
    assert "that of `batch_size`" in generator.page()


def test_settings_are_frozen_and_checkpoints_ascend():
    settings = Online.of(ONLINE)
    assert settings.checkpoints == (0, 4)
    with pytest.raises(ValidationError, match="frozen"):
        settings.gamma = 0.5


def test_settings_that_are_checked_already_pass():
    settings = Online.of(ONLINE)
    assert Online.of(settings) is settings


@pytest.mark.parametrize(
    ("section", "given", "message"),
    [
        (Online, ONLINE | {"top_p": 0}, "configuration key 'here.top_p' is 0; it must be greater than 0"),
        (Online, ONLINE | {"top_p": "1"}, "configuration key 'here.top_p' is '1'; it must be of type number"),
        (Online, ONLINE | {"rollout": "fast"}, "'here.rollout' is 'fast'; it must be one of cached, generate, vllm"),
        (Online, ONLINE | {"rollouts_per_prompt": 3}, "'here.batch_size' is 8; it must be a multiple of rollouts_per"),
        (Online, LENGTH, "configuration key 'here.checkpoints' is missing"),
        (
            Offline,
            ONLINE | {"batch_size": "8"},
            "'here.batch_size' is '8'; it must be of type integer",
        ),
        (Offline, ONLINE | {"betas": 1}, "configuration key 'here.betas' is unknown; allowed here: batch_size, micro_"),
        (Offline, ONLINE | {"checkpoints": [0, 5]}, "'here.checkpoints' is 5; it must be at most max_steps, 4"),
        (Sft, {"batch_size": 8, "learning_rate": 1}, "'here.max_steps' is None; it must be given, or epochs instead"),
        (Probe, {"samples": {"train": 1}}, "configuration key 'here.samples.train' is 1; it must be at least 2"),
        (Probe, {"final_sets": {"online": []}}, "'here.final_sets.online' is []; it must be of at least 1 entries"),
        (HubData, {"source": "hub", "sft": {}}, "configuration key 'here.sft.path' is missing"),
        (Model, {"base": {"source": "world", "layer": 1}}, "configuration key 'here.base.layer' is unknown; allowed"),
        (Model, {"base": {"source": "hub"}}, "configuration key 'here.base.name' is missing"),
        (Model, {"base": {}}, "configuration key 'here.base.source' is missing"),
    ],
)
def test_mistakes_name_key_value_and_way_out(section, given, message):
    with pytest.raises(InputError) as caught:
        section.of(given, "here")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_free_keys_are_for_anchors_at_the_top_only():
    given = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    assert Configuration.of(given | {"x-anything": [1]}) == Configuration.of(given)
    with pytest.raises(InputError, match=r"'probe\.x-anything' is unknown"):
        Configuration.of(given | {"probe": {"x-anything": 1}})


def test_importing_the_declarations_is_light():
    code = "import sys, po_dynamics.harness.config; print(sorted({'torch', 'numpy', 'pandas'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "workflow", capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"

"""What jobs ask for follows from the number of parameters; the configuration has the last word."""

import pytest
from po_dynamics.errors import InputError
from po_dynamics.harness.resources import STAGES, WORLD, of, parameters

BILLION = 1_000_000_000


def hub(size: float, reward: float | None = None, **resources: dict[str, int]) -> dict:
    reward_model = {"source": "hub"} if reward is None else {"source": "hub", "parameters": int(reward * BILLION)}
    base = {"source": "hub", "name": "m", "parameters": int(size * BILLION)}
    return {"base": base, "reward": reward_model, "resources": resources}


@pytest.fixture
def world():
    base = {"source": "world", "hidden_size": 96, "layers": 2, "heads": 4, "intermediate_size": 384}
    return {"base": base, "reward": {"source": "train"}}


@pytest.mark.parametrize(
    ("stage", "size", "memory", "devices"),
    [
        ("sft", 1.7, 80, 1),  # 27 GB of 64
        ("sft", 8, 80, 2),  # 128 GB
        ("sft", 12.1, 80, 4),  # 194 GB are three devices, so four
        ("offline", 8, 40, 8),  # 128 GB of 24 each
        ("online", 1.5, 80, 1),  # 48 GB; on every device 6 + 3 GB
        ("online", 8, 141, 4),  # 256 GB; 141 − 16 − 48 each
        ("reference", 8, 80, 1),
        ("probe", 8, 80, 1),  # does not fit, but is one process
        ("download", 8, 80, 0),
    ],
)
def test_devices_hold_what_a_stage_needs(stage, size, memory, devices):
    assert of(hub(size), stage, memory)["gpu"] == devices


def test_the_reward_models_own_size_counts():
    assert of(hub(1.5), "online")["gpu"] == 1
    assert of(hub(1.5, reward=8), "online")["gpu"] == 2


@pytest.mark.parametrize("stage", STAGES)
def test_a_larger_model_asks_for_more(stage):
    small, large = of(hub(1.7), stage, 141), of(hub(8), stage, 141)
    assert small["mem_mb"] < large["mem_mb"]
    assert small["runtime"] < large["runtime"]
    assert small["gpu"] <= large["gpu"]


@pytest.mark.parametrize("stage", STAGES)
def test_models_of_the_world_ask_for_no_device(stage, world):
    asked = of(world, stage)
    assert asked["gpu"] == 0
    assert WORLD.mem_mb <= asked["mem_mb"] < WORLD.mem_mb + 100


def test_the_configuration_has_the_last_word():
    asked = of(hub(8, sft={"gpu": 3, "runtime": 7}), "sft")
    assert (asked["gpu"], asked["runtime"]) == (3, 7)
    assert asked["mem_mb"] == of(hub(8), "sft")["mem_mb"]


def test_models_that_fill_every_device_are_refused_unless_the_devices_are_stated():
    with pytest.raises(InputError, match=r"of 40 GB of a device, online fills 48 GB .*resources\.online\.gpu"):
        of(hub(8), "online", 40)
    assert of(hub(8, online={"gpu": 16}), "online", 40)["gpu"] == 16


def test_parameters_of_the_worlds_model_are_those_of_its_layers(world):
    from transformers import GPTNeoXConfig, GPTNeoXModel

    sizes = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 384}
    model = GPTNeoXModel(GPTNeoXConfig(**sizes, vocab_size=7))
    assert parameters(world["base"]) == model.num_parameters() - 7 * 96

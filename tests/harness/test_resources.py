"""What jobs ask for follows from the number of parameters; the configuration has the last word."""

import pytest
from po_dynamics.errors import InputError
from po_dynamics.harness import job_table
from po_dynamics.harness.resources import RESERVE, STAGES, WORLD, Devices, memory, of, parameters

BILLION = 1_000_000_000


TRAINING = {"micro_batch_size": 4, "max_length": 1024, "gradient_checkpointing": True}


def hub(size: float, reward: float | None = None, **stated: dict[str, int]) -> dict:
    reward_model = {"source": "hub"} if reward is None else {"source": "hub", "parameters": int(reward * BILLION)}
    base = {"source": "hub", "name": "m", "parameters": int(size * BILLION)}
    online = TRAINING | {"max_prompt_length": 256, "max_new_tokens": 256}
    stages = {"sft": TRAINING, "reward": {**TRAINING, **reward_model}, "offline": TRAINING, "online": online}
    return {"base": base, **stages, "resources": stated}


@pytest.fixture
def world():
    base = {"source": "world", "hidden_size": 96, "layers": 2, "heads": 4, "intermediate_size": 384}
    return {"base": base, "reward": {"source": "train"}}


@pytest.mark.parametrize(
    ("stage", "size", "memory", "devices"),
    [
        ("sft", 1.7, 80, 1),  # 27 GB of weights, and of 4 096 tokens the logits, 11, and the layers, 2
        ("sft", 8, 80, 4),  # 128 / 2 + 31 + 4 are above 80
        ("sft", 8, 141, 2),  # 128 + 17 + 4 are above 141
        ("offline", 8, 80, 8),  # two rows a pair: 128 / 4 + 48 + 4 are above 80
        ("online", 1.5, 80, 1),  # 57 GB of weights with the reward model's, 6 of 2 048 tokens
        ("online", 8, 141, 4),
        ("reference", 8, 80, 1),
        ("probe", 2.8, 80, 1),  # 56 GB of the model, v, P⁻¹v and two gradients, 17 of a row of 1 024 tokens
        ("download", 8, 80, 0),
    ],
)
def test_devices_hold_what_a_stage_needs(stage, size, memory, devices):
    assert of(hub(size), stage, Devices(memory))["gpu"] == devices


def test_the_reward_models_own_size_counts():
    assert of(hub(1.6), "online")["gpu"] == 1
    assert of(hub(1.6, reward=8), "online")["gpu"] == 2


def test_a_runs_own_settings_count():
    assert of(hub(8), "sft")["gpu"] == 4
    assert of(hub(8), "sft", settings={**TRAINING, "micro_batch_size": 8})["gpu"] == 8
    assert of(hub(2.8), "offline")["gpu"] == 1
    assert (
        of(hub(1.7), "offline", settings={**TRAINING, "micro_batch_size": 1, "gradient_checkpointing": False})["gpu"]
        == 1
    )


def test_what_is_sharded_falls_with_the_devices_and_what_tokens_need_does_not():
    one, two, four = (memory(hub(8), "sft", count) for count in (1, 2, 4))
    assert one.weights == 2 * two.weights == 4 * four.weights == 128
    assert two.working == four.working > one.working  # several gather layers
    assert one.peak == one.weights + one.working + RESERVE


@pytest.mark.parametrize("stage", STAGES)
def test_a_larger_model_asks_for_more(stage):
    small, large = of(hub(1.7), stage, Devices(300)), of(hub(8), stage, Devices(300))
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
    assert asked["mem_mb"] < of(hub(8), "sft")["mem_mb"]  # which four processes load


def test_what_fits_into_no_node_is_refused_unless_the_devices_are_stated():
    with pytest.raises(
        InputError, match=r"online needs \d+ GB on each of 8 devices, which have 40 .*resources\.online\.gpu"
    ):
        of(hub(8), "online", Devices(40))
    assert of(hub(8, online={"gpu": 16}), "online", Devices(40))["gpu"] == 16
    with pytest.raises(InputError, match=r"probe needs \d+ GB on each of 1 devices, which have 80 GB"):
        of(hub(8), "probe")
    with pytest.raises(InputError, match="on each of 2 devices"):
        of(hub(8), "sft", Devices(80, per_node=2))


def test_parameters_of_the_worlds_model_are_those_of_its_layers(world):
    from transformers import GPTNeoXConfig, GPTNeoXModel

    sizes = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 384}
    model = GPTNeoXModel(GPTNeoXConfig(**sizes, vocab_size=7))
    assert parameters(world["base"]) == model.num_parameters() - 7 * 96


def test_the_page_has_the_table_of_the_papers_jobs():
    text = (job_table.ROOT / "docs/cluster.md").read_text()
    assert job_table.page(text) == text, f"run {job_table.COMMAND}"
    assert "| llama3-8b | online | 8 ×" in text
    assert "| llama3-8b | probe | does not fit" in text


def test_the_table_of_a_configuration_is_of_its_own_stages_and_cards(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["job_table", str(job_table.ROOT / "config/one-gpu.yaml")])
    job_table.main()
    printed = capsys.readouterr().out
    assert "cards of 25.7 GB" in printed
    assert "| pythia-410m | reward | 1 ×" in printed  # trained there
    assert "does not fit" not in printed
    monkeypatch.setattr("sys.argv", ["job_table", "nowhere.yaml"])
    with pytest.raises(SystemExit, match=r"error: .*nowhere\.yaml"):
        job_table.main()

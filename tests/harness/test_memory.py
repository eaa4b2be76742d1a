"""The arithmetic of memory against what tiny models hold, and against the paper's architectures written out."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_offline
import tiny_ppo
import torch
import toy
import yaml
from po_dynamics.evaluation.responses import evaluate_responses
from po_dynamics.harness import config as configuration
from po_dynamics.harness import resources
from po_dynamics.harness.resources import STAGES, Devices
from po_dynamics.models.armorm import ArmoRM
from po_dynamics.objectives.registry import bind
from po_dynamics.ppo.train import train_online
from po_dynamics.probe.passes import Options, probe, with_reference
from probe_samples import final, pairs
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

ROOT = Path(__file__).parents[2]

# ------------------------------------------------------------------------------------------ published architectures


def neox(hidden: int, layers: int, heads: int) -> GPTNeoXConfig:
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": 4 * hidden}
    return GPTNeoXConfig(vocab_size=50304, num_attention_heads=heads, **sizes)


QWEN = {"vocab_size": 151936, "tie_word_embeddings": True}
CONFIGS: dict[str, tuple[type, PreTrainedConfig]] = {
    "EleutherAI/pythia-2.8b": (GPTNeoXForCausalLM, neox(2560, 32, 32)),
    "EleutherAI/pythia-410m": (GPTNeoXForCausalLM, neox(1024, 24, 16)),
    "Qwen/Qwen3-1.7B": (
        Qwen3ForCausalLM,
        Qwen3Config(
            **QWEN, hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16,
            num_key_value_heads=8, head_dim=128,
        ),
    ),
    "Qwen/Qwen2.5-0.5B": (
        Qwen2ForCausalLM,
        Qwen2Config(
            **QWEN, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
            num_key_value_heads=2,
        ),
    ),
}  # fmt: skip
LLAMA = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip
CONFIGS |= {
    "meta-llama/Meta-Llama-3-8B": (LlamaForCausalLM, LlamaConfig(**LLAMA)),
    "Skywork/Skywork-Reward-Llama-3.1-8B": (LlamaForSequenceClassification, LlamaConfig(**LLAMA, num_labels=1)),
    "RLHFlow/ArmoRM-Llama3-8B-v0.1": (ArmoRM, LlamaConfig(**LLAMA)),
}


def models(name: str) -> dict[str, dict[str, Any]]:
    return configuration.load(yaml.safe_load((ROOT / f"config/{name}.yaml").read_text())).config["models"]


@pytest.mark.parametrize("configured", ["paper", "one-gpu"])
def test_numbers_of_parameters_are_those_of_the_architectures(configured):
    parts = [part for model in models(configured).values() for part in (model["base"], model["reward"])]
    stated = {part["name"]: part["parameters"] for part in parts if part["source"] == "hub"}
    assert stated
    for name, parameters in stated.items():
        build, config = CONFIGS[name]
        with torch.device("meta"):
            assert build(config).num_parameters() == parameters, name


def working_set(config: Any, tokens: int) -> float:
    """GB on a device of several, of one training pass with checkpointing: an architecture's own sizes, in float32."""
    hidden, layers, vocabulary = config.hidden_size, config.num_hidden_layers, config.vocab_size
    kept = tokens * hidden * layers * 4
    inside = tokens * (14 * hidden + 4 * config.intermediate_size) * 4  # of the layer that is computed again
    logits = tokens * vocabulary * resources.TRAINING_LOGITS
    with torch.device("meta"):
        model = (GPTNeoXForCausalLM if config.model_type == "gpt_neox" else CAUSAL[config.model_type])(config)
    embeddings = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    layer = (model.num_parameters() - sum(w.numel() for w in embeddings.values())) / layers
    gathered = 4 * (sum(w.numel() for w in embeddings.values()) + 2 * layer) + 4 * vocabulary * hidden
    return (kept + inside + logits + gathered) / 1e9


CAUSAL = {"qwen3": Qwen3ForCausalLM, "llama": LlamaForCausalLM}


@pytest.mark.parametrize("model", ["pythia-2.8b", "qwen3-1.7b", "llama3-8b"])
def test_working_sets_hold_what_the_architectures_need(model):
    """The estimate knows only the number of parameters, and takes every vocabulary for the largest."""
    about = models("paper")[model]
    tokens = 2 * about["offline"]["micro_batch_size"] * about["offline"]["max_length"]
    needed = working_set(CONFIGS[about["base"]["name"]][1], tokens)
    estimated = resources.memory(about, "offline", 2).working
    assert 0.95 * needed <= estimated <= 3 * needed


def test_every_stage_of_the_paper_fits_into_one_node():
    """Of eight cards of 80 GB; a stage that the paper does not have of a model need not."""
    paper = configuration.load(yaml.safe_load((ROOT / "config/paper.yaml").read_text()))
    probed = {run.model for run in paper.runs.values() if run.final_sets}
    for name, model in paper.config["models"].items():
        for stage in set(STAGES) - {"reward"} - (set() if name in probed else {"probe"}):
            assert resources.of(model, stage, Devices(80, 8))["gpu"] <= 8
    for run in paper.runs.values():
        devices = resources.of(paper.config["models"][run.model], run.family, Devices(80, 8), run.settings)["gpu"]
        if run.family == "offline":
            assert run.settings["batch_size"] % (run.settings["micro_batch_size"] * devices) == 0
        else:
            assert run.settings["batch_size"] % (run.settings["mini_batches"] * devices) == 0


# --------------------------------------------------------------------------------------------------- what models hold

SIZES = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 2,
    "head_dim": 256,
    "initializer_range": 0.02,
}
LAYERS = (2, 10)
PARAMETERS_OF_A_LAYER = 4 * 512**2 - 512**2 + 3 * 512 * 2048  # keys and values of one head of two


def peak_of(function: Callable[[], object], note: Path) -> int:
    """Bytes that a forked process holds at most."""

    def run() -> None:
        function()
        note.write_text(str(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))

    assert toy.in_child(run) == 0
    return int(note.read_text())


def bytes_per_parameter(tmp_path: Path, stage: Callable[[int, Path], Callable[[], object]]) -> float:
    """How the peak grows with the parameters: what does not, libraries and data, falls out."""
    peaks = []
    for layers in LAYERS:
        folder = tmp_path / str(layers)
        folder.mkdir()
        peaks.append(peak_of(stage(layers, folder), folder / "peak"))
    return (peaks[1] - peaks[0]) / ((LAYERS[1] - LAYERS[0]) * PARAMETERS_OF_A_LAYER)


def folder_of(path: Path, layers: int, **options: Any) -> Path:
    def save() -> None:
        toy.tiny_folder(path, "llama", num_hidden_layers=layers, **SIZES, **options)

    assert toy.in_child(save) == 0  # in a process of its own, so that this one holds nothing of it
    return path


def tokens(rows: Path, model: Path) -> None:
    assert toy.in_child(lambda: toy.write_tokens(rows, model)) == 0


def offline(layers: int, folder: Path) -> Callable[[], object]:
    folder_of(folder / "sft", layers)
    tokens(tiny_offline.make_pairs(folder / "preferences.parquet"), folder / "sft")
    changes = {"micro_batch_size": 1, "batch_size": 2, "max_steps": 2, "checkpoints": [2], "save_every": 9}

    def run() -> None:
        tiny_offline.train(folder, folder, **changes)

    reference = [folder / name for name in ("sft", "preferences.arrow", "reference.parquet")]
    assert toy.in_child(lambda: tiny_offline.compute_reference(*reference, tiny_offline.REFERENCE)) == 0
    return run


def online(layers: int, folder: Path) -> Callable[[], object]:
    """The reward model is of the same size and in float32."""
    folder_of(folder / "policy", layers)
    folder_of(folder / "reward", layers, scorer=True)
    tokens(toy.write_preferences(folder / "prompts.parquet", 4), folder / "policy")
    changes = {
        "batch_size": 2,
        "micro_batch_size": 1,
        "mini_batches": 1,
        "max_steps": 2,
        "checkpoints": [],
        "epochs": 1,
    }
    settings = tiny_ppo.SETTINGS | changes | {"checkpoints": [0], "save_every": 9, "max_prompt_length": 64}
    inputs = [folder / name for name in ("policy", "reward", "prompts.arrow")]
    outputs = [folder / name for name in ("output", "log", "state")]
    return lambda: train_online(*inputs, *outputs, bind("ppo", {}), settings, 0)


def generate(layers: int, folder: Path) -> Callable[[], object]:
    """On a CPU both models are in float32: 8 bytes of a parameter instead of 4."""
    folder_of(folder / "sft", layers)
    tokens(toy.write_preferences(folder / "prompts.parquet", 2), folder / "sft")
    return lambda: evaluate_responses(
        {1: folder / "sft"}, folder / "sft", None, folder / "prompts.arrow", folder / "out.parquet",
        {"max_new_tokens": 4},
    )  # fmt: skip


def probed(layers: int, folder: Path) -> Callable[[], object]:
    def run() -> None:
        model = toy.tiny_model("llama", 60, num_hidden_layers=layers, attn_implementation="eager", **SIZES)
        scales = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}
        train = with_reference(pairs(2, batch_size=1), model)
        probe(model, train, final(2), bind("dpo", {"beta": 0.1}), options=Options(scales=scales, audits=0))

    return run


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (offline, STAGES["offline"].sharded),
        (online, STAGES["online"].sharded + 4),
        (generate, 2 * STAGES["generate"].whole),
        (probed, STAGES["probe"].whole + 8),  # on a CPU v and the scales are in the same memory
    ],
    ids=["offline", "online", "generate", "probe"],
)
def test_bytes_per_parameter_are_those_that_tiny_models_hold(tmp_path, stage, expected):
    measured = bytes_per_parameter(tmp_path, stage)
    assert expected / 1.25 <= measured <= 1.25 * expected, f"{measured:.1f} bytes per parameter, not {expected}"

"""What a job asks of the cluster: devices, host memory and time, from the number of parameters of its models.

With P parameters of the model a stage holds so many bytes of weights in device memory; R are those of its reward model,
2 of a parameter where it is published (bfloat16), 4 where it was trained here (float32):

    sft, offline   weights 4 + gradient 4 + AdamW 8 = 16 P, sharded over the devices
    reward         16 P sharded; at the end, whole, the trained model and the SFT model that is sampled from, 8 P
    online         policy and critic 2 · 16 P, reference 4 P and R, all sharded
    reference      4 P
    generate       4 P (for the judge policy and SFT model in bfloat16, D′ from the policy in float32), later R
    probe          policy 4 + u of POS and NEG 8 + their gradients in a mini-batch 8 = 20 P (v waits in host memory);
                   online while rolling out policy, critic and reference 12 P + R
    download       nothing

To this come, on every device, what its tokens need (`_working`), where there are several the layers that are gathered
for a pass, and RESERVE. Trainings take as few devices as hold that, a power of two, which divides the batches of any
usual recipe; the other stages run in one process on one device. `tests/harness/test_memory.py` compares all of this
with what tiny models allocate and with the published architectures. `python -m po_dynamics.harness.job_table` shows it.

On the host every process of a training loads whole models before they are sharded, and the first gathers what is
saved. Time is `HUB.runtime` and an allowance per 10⁹ parameters; a job that runs out of it goes on from its state when
it is started again. Models of the embedded world run on processors: what would be device memory is host memory.
`models.<model>.resources.<stage>` overrides any of the three.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from po_dynamics.errors import InputError

VOCABULARY = 152_000  # tokens: that of Qwen, the largest of the three
# Bytes per logit: a training holds bfloat16, float32, two gradients of these and a sum; a pass without gradients less;
# KL of two models their log-probs and three differences; forward mode logits, tangents and two products.
TRAINING_LOGITS, FORWARD_LOGITS, KL_LOGITS, TANGENT_LOGITS = 18, 14, 22, 20
# MB per token and (10⁹ parameters)^(2/3), which hidden size × layers grow with: inputs of all layers and the inside of
# one (gradient checkpointing), or keys and values of all layers (decoding); and the inside of all layers, in float32
# with eager attention.
CHECKPOINTED, STORED = 0.35, 7.0
GATHERED = 1.7  # bytes per parameter: embeddings, head, two layers and their gradients, in float32
ROLLING_OUT = 12  # bytes per parameter of the probe's roll-outs, before it loads the policy anew
RESERVE = 3.0  # GB of a device: CUDA's context, buffers of the collectives, fragmentation
DECODED_TOKENS, PROBED_TOKENS, REVERSED_TOKENS = 16_384, 2048, 1024  # of a batch: evaluation.responses, probe


class Devices(NamedTuple):
    """The graphics cards of a node."""

    memory: float = 80.0  # GB of one
    per_node: int = 8


NODE = Devices()


class Host(NamedTuple):
    """What every job asks for: libraries, data and buffers (MB); loading and compilation (minutes)."""

    mem_mb: int
    runtime: int


HUB = Host(16_000, 60)
WORLD = Host(3000, 30)


class Stage(NamedTuple):
    """Bytes per parameter; minutes per 10⁹ parameters of the model."""

    sharded: float = 0  # over all devices, of the model's parameters
    sharded_reward: bool = False  # over all devices, the reward model
    whole: float = 0  # on every device, of the model's parameters
    whole_reward: bool = False  # on every device, the reward model, when the model itself is gone
    each: float = 4  # on the host, by every process, of the model's parameters
    once: float = 0  # on the host, by the first process besides
    minutes: float = 10


STAGES: Mapping[str, Stage] = {
    "download": Stage(),
    "sft": Stage(sharded=16, once=8, minutes=180),
    "reward": Stage(sharded=16, whole=8, each=8, once=8, minutes=180),
    "offline": Stage(sharded=16, once=8, minutes=350),
    "online": Stage(sharded=36, sharded_reward=True, each=8, once=24, minutes=350),
    "reference": Stage(whole=4, minutes=30),
    "generate": Stage(whole=4, whole_reward=True, each=8, minutes=80),
    "probe": Stage(whole=20, whole_reward=True, each=20, minutes=80),
}


class Memory(NamedTuple):
    """GB on a device: of weights, gradients and optimizers, and of what comes and goes with the tokens."""

    weights: float
    working: float

    @property
    def peak(self) -> float:
        return self.weights + self.working + RESERVE


def of(
    model: Mapping[str, Any],
    stage: str,
    devices: Devices = NODE,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, int]:
    """`gpu`, `mem_mb` (MB) and `runtime` (minutes) of a job of `stage` for `models.<model>` of a configuration.

    `settings` are those of the run that is trained, where it is one; by default the model's.

    Raises:
        InputError: the stage does not fit into a node.
    """
    about, stated = STAGES[stage], _stated(model, stage)
    own = parameters(model["base"]) / 1e9
    if model["base"]["source"] == "world":
        count, host, start = 0, _weights(model, stage, 1), WORLD
    else:
        count = stated.get("gpu", 0) or fitting_devices(model, stage, devices, settings)
        host, start = (about.each * max(count, 1) + about.once) * own, HUB
        host += _reward(model) if about.sharded_reward or about.whole_reward else 0
    runtime = start.runtime + math.ceil(about.minutes * own)
    return {"gpu": count, "mem_mb": start.mem_mb + math.ceil(1000 * host), "runtime": runtime} | stated


def _stated(model: Mapping[str, Any], stage: str) -> dict[str, int]:
    """What the configuration says; null is nothing."""
    asked = (model.get("resources") or {}).get(stage) or {}
    return {name: value for name, value in asked.items() if value is not None}


def fitting_devices(
    model: Mapping[str, Any], stage: str, devices: Devices, settings: Mapping[str, Any] | None = None
) -> int:
    """The smallest power of two that holds the stage, for a training; else 1, or 0 where nothing is on a device.

    Raises:
        InputError: the stage does not fit into a node.
    """
    about, count = STAGES[stage], 1
    if not (about.sharded or about.whole):
        return 0
    while (needed := memory(model, stage, count, settings).peak) > devices.memory:
        if not about.sharded or 2 * count > devices.per_node:
            raise InputError(
                f"configuration: {stage} needs {needed:.0f} GB on each of {count} devices, which have "
                f"{devices.memory:g} GB: take a smaller model or micro_batch_size, say what a node has "
                f"(device_memory_gb, devices_per_node), or state models.<model>.resources.{stage}.gpu"
            )
        count *= 2
    return count


def memory(model: Mapping[str, Any], stage: str, count: int, settings: Mapping[str, Any] | None = None) -> Memory:
    """What `stage` holds on each of `count` devices."""
    own = parameters(model["base"]) / 1e9
    gathered = GATHERED * own if count > 1 else 0
    working = _working(stage, own, settings or _settings(model, stage))
    return Memory(_weights(model, stage, count), working + gathered)


def _weights(model: Mapping[str, Any], stage: str, count: int) -> float:
    about, own, reward = STAGES[stage], parameters(model["base"]) / 1e9, _reward(model)
    sharded = (about.sharded * own + about.sharded_reward * reward) / count
    first = ROLLING_OUT * own + about.whole_reward * reward if stage == "probe" else about.whole_reward * reward
    return sharded + max(about.whole * own, first)


def _settings(model: Mapping[str, Any], stage: str) -> Mapping[str, Any]:
    """The section of the configuration that the stage follows."""
    return model.get("offline" if stage == "reference" else stage) or {}


def _working(stage: str, own: float, settings: Mapping[str, Any]) -> float:
    """GB on a device that the tokens of its largest pass need, beside weights; `own` in 10⁹ parameters."""
    logits, layers = VOCABULARY / 1e9, own ** (2 / 3) / 1e3  # GB per token: by bytes per logit, by MB
    tokens = _tokens(stage, settings)
    if stage == "generate":
        return max(DECODED_TOKENS * CHECKPOINTED * layers, DECODED_TOKENS / 4 * KL_LOGITS * logits)
    if stage == "probe":
        reverse = REVERSED_TOKENS * (STORED * layers + TRAINING_LOGITS * logits)
        return max(PROBED_TOKENS * TANGENT_LOGITS * logits, reverse)
    if stage == "reference":
        return tokens * FORWARD_LOGITS * logits
    stored = CHECKPOINTED if settings.get("gradient_checkpointing") else STORED
    training = tokens * (stored * layers + TRAINING_LOGITS * logits)
    return max(training, 4 * tokens * CHECKPOINTED * layers) if stage == "online" else training


def _tokens(stage: str, settings: Mapping[str, Any]) -> int:
    """Tokens of a forward pass with gradients: rows of a micro-batch (two of a pair) times the longest."""
    rows = settings.get("micro_batch_size") or settings.get("batch_size") or 0
    if stage == "online":
        return int(rows * (settings["max_prompt_length"] + settings["max_new_tokens"]))
    return int((1 if stage == "sft" else 2) * rows * (settings.get("max_length") or 2048))


def disk(own: float, family: str, checkpoints: int) -> float:
    """GB that a run keeps until it is probed and evaluated; `own` in 10⁹ parameters.

    Checkpoints (weights 4, second moments 4, online the critic 4) and the resumable state, twice while it is replaced
    (weights and AdamW, 12; online of policy and critic, 24).
    """
    checkpoint, state = (8, 12) if family == "offline" else (12, 24)
    return own * (checkpoint * checkpoints + 2 * state)


def parameters(base: Mapping[str, Any]) -> int:
    """Number of parameters of a base model: as stated, or counted from the sizes of a model of the embedded world.

    A GPT-NeoX layer has 4 H² + 2 H I weights and 9 H + I biases and norms. Embeddings are left out: the vocabulary is
    made with the data and has a few hundred words.
    """
    if base["source"] == "world":
        hidden, inner = base["hidden_size"], base["intermediate_size"]
        return int(base["layers"] * (4 * hidden**2 + 2 * hidden * inner + 9 * hidden + inner) + 2 * hidden)
    return int(base["parameters"])


def _reward(model: Mapping[str, Any]) -> float:
    """GB of the weights of the reward model, which has the base model's size where none is stated."""
    about = model["reward"]
    return (4 if about["source"] == "train" else 2) * (about.get("parameters") or parameters(model["base"])) / 1e9

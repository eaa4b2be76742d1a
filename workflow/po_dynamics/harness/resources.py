"""What a job asks of the cluster: devices, host memory and time, from the number of parameters of its models.

With P parameters of the model and R of its reward model a stage holds so many bytes in device memory, in float32:

    sft, reward, offline   weights 4 + gradient 4 + AdamW 8 = 16 P, sharded over the devices
    online                 policy and critic, 2 · 16 P, sharded; on every device the reference 4 P and the reward
                           model 2 R (bfloat16)
    reference              4 P
    generate               the policy and the SFT model that the KL is about 8 P, the reward model 2 R
    probe                  policy 4 + reference 4 + v 4 + two gradients 8 + P and P⁻¹v of AdamW 8 = 28 P; reward 2 R
    download               nothing; on the host the model, 4 P

On every device `ACTIVATIONS` are kept free for activations, caches and logits. Devices of a training stage are
⌈sharded / (device memory − activations − what is on every device)⌉, up to the next power of two, which divides the
batches of any usual recipe. The other stages run in one process on one device, whether or not they fit into it.

A host needs `HUB.mem_mb` and a whole copy of every model, with the parts of a checkpoint that are gathered (weights and
second moments, 8 P) where there is training. Time is `HUB.runtime` and an allowance per 10⁹ parameters; a job that runs
out of it goes on from its state when it is started again. Models of the embedded world run on processors: what would
be device memory is host memory. `models.<model>.resources.<stage>` overrides any of the three.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from po_dynamics.errors import InputError

DEVICE_MEMORY = 80.0  # GB of one device, where the configuration says nothing: `device_memory_gb`
ACTIVATIONS = 16.0  # GB of a device that are not for weights, gradients and optimizer


class Host(NamedTuple):
    """What every job asks for: libraries, data and buffers (MB); loading and compilation (minutes)."""

    mem_mb: int
    runtime: int


HUB = Host(16_000, 60)
WORLD = Host(3000, 30)


class Stage(NamedTuple):
    """Bytes per parameter in device memory and on the host; minutes per 10⁹ parameters of the model."""

    sharded: float = 0  # over all devices, of the model's parameters
    whole: float = 0  # on every device, of the model's parameters
    reward: float = 0  # on every device, of the reward model's parameters
    host: float = 4
    minutes: float = 10


STAGES: Mapping[str, Stage] = {
    "download": Stage(),
    "sft": Stage(sharded=16, host=12, minutes=180),
    "reward": Stage(sharded=16, host=16, minutes=180),
    "offline": Stage(sharded=16, host=12, minutes=350),
    "online": Stage(sharded=32, whole=4, reward=2, host=24, minutes=350),
    "reference": Stage(whole=4, minutes=30),
    "generate": Stage(whole=8, reward=2, host=8, minutes=80),
    "probe": Stage(whole=28, reward=2, host=12, minutes=80),
}


def of(model: Mapping[str, Any], stage: str, device_memory: float = DEVICE_MEMORY) -> dict[str, int]:
    """`gpu`, `mem_mb` (MB) and `runtime` (minutes) of a job of `stage` for `models.<model>` of a configuration.

    `device_memory` is that of one device in GB.

    Raises:
        InputError: what every device must hold fills it.
    """
    about, stated = STAGES[stage], _stated(model, stage)
    own, reward = parameters(model["base"]) / 1e9, _reward(model) / 1e9
    sharded, whole = about.sharded * own, about.whole * own + about.reward * reward
    if model["base"]["source"] == "world":
        devices, host, start = 0, sharded + whole, WORLD
    else:
        devices = 0 if "gpu" in stated else _devices(sharded, whole, device_memory, stage)
        host, start = about.host * own + about.reward * reward, HUB
    runtime = start.runtime + math.ceil(about.minutes * own)
    return {"gpu": devices, "mem_mb": start.mem_mb + math.ceil(1000 * host), "runtime": runtime} | stated


def _stated(model: Mapping[str, Any], stage: str) -> dict[str, int]:
    """What the configuration says; null is nothing."""
    asked = (model.get("resources") or {}).get(stage) or {}
    return {name: value for name, value in asked.items() if value is not None}


def _devices(sharded: float, whole: float, memory: float, stage: str) -> int:
    """All in GB."""
    if not sharded:
        return 1 if whole else 0
    free = memory - ACTIVATIONS - whole
    if free <= 0:
        raise InputError(
            f"configuration: of {memory:g} GB of a device, {stage} fills {whole:.0f} GB with models that are not "
            f"sharded and {ACTIVATIONS:g} GB with activations; set device_memory_gb or "
            f"models.<model>.resources.{stage}.gpu"
        )
    return int(2 ** math.ceil(math.log2(max(1, sharded / free))))


def parameters(base: Mapping[str, Any]) -> int:
    """Number of parameters of a base model: as stated, or counted from the sizes of a model of the embedded world.

    A GPT-NeoX layer has 4 H² + 2 H I weights and 9 H + I biases and norms. Embeddings are left out: the vocabulary is
    made with the data and has a few hundred words.
    """
    if base["source"] == "world":
        hidden, inner = base["hidden_size"], base["intermediate_size"]
        return int(base["layers"] * (4 * hidden**2 + 2 * hidden * inner + 9 * hidden + inner) + 2 * hidden)
    return int(base["parameters"])


def _reward(model: Mapping[str, Any]) -> int:
    """Parameters of the reward model: as stated, or those of the base model, from which it is trained."""
    return int(model["reward"].get("parameters") or parameters(model["base"]))

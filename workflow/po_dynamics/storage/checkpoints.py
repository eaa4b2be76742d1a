"""Model folders: finished models, and the checkpoints that the probe reads, with their optimizer state."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from po_dynamics.errors import InputError
from po_dynamics.storage.atomic import atomic_folder, remove, write_json
from po_dynamics.storage.distributed import is_first_process

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MOMENTS, OPTIMIZER = "exp_avg_sq.safetensors", "optimizer.json"


def _write_optimizer(moments: dict[str, Tensor], optimizer: torch.optim.Optimizer, folder: Path) -> None:
    from safetensors.torch import save_file

    if not moments:
        return
    save_file(moments, folder / MOMENTS)
    group = optimizer.param_groups[0]
    # Not the checkpoint's step: an update of PPO takes several optimizer steps, and bias correction needs their count.
    step = max(int(state["step"]) for state in optimizer.state.values())
    content = {"step": step, "learning_rate": float(group["lr"]), "betas": [float(b) for b in group["betas"]]}
    content |= {"eps": float(group["eps"]), "weight_decay": float(group["weight_decay"])}
    (folder / OPTIMIZER).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_moments(folder: Path) -> dict[str, Tensor] | None:
    """AdamW's second moments by parameter name, as `save_step` stores them; None where a checkpoint has none."""
    from safetensors.torch import load_file

    path = folder / MOMENTS
    if not path.is_file():
        return None
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own kinds
        raise InputError(f"{path} is truncated or broken ({error}); train this checkpoint again") from None


def read_scales(folder: Path, model: PreTrainedModel) -> dict[str, Tensor] | None:
    """AdamW's P = √v̂ + ε by parameter (v̂ bias-corrected), in the model's precision on the CPU.

    None without optimizer state. Raises InputError for that of another model.
    """
    state, squares = folder / OPTIMIZER, read_moments(folder)
    if not state.is_file() or squares is None:
        return None
    content = json.loads(state.read_text(encoding="utf-8"))
    correction = 1 - content["betas"][1] ** content["step"]
    scales = {}
    for name, parameter in model.named_parameters():
        if name not in squares or squares[name].shape != parameter.shape:
            raise InputError(f"{folder / MOMENTS} has no second moments of {name} in its shape; it is of another model")
        scales[name] = (squares[name].to(parameter.dtype) / correction).sqrt() + content["eps"]
    return scales


def publish(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    output: Path,
    state: Path,
    files: Mapping[str, Mapping[str, Any]],
) -> None:
    """Writes the trained model (float32), training.csv and JSON `files` as one folder, then removes the state.

    For the first process, once a run of unsharded weights is complete.
    """
    from po_dynamics.storage import sharding

    if getattr(model.config, "use_cache", None) is False:
        model.config.use_cache = True
    with atomic_folder(output) as temporary:
        _write_model(model, sharding.weights(model), tokenizer, temporary)
        shutil.copy2(state / "training.csv", temporary)
        for name, content in files.items():
            write_json(temporary / name, content)
    remove(state)


def _write_model(
    model: PreTrainedModel, weights: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """Writes weights (float32), configuration and tokenizer; `folder` loads with `from_pretrained`.

    Only through `save_pretrained`: TRL patches `forward` on the instance, and a deep copy would run the live weights.
    """
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_step(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    critic: PreTrainedModel | None = None,
) -> None:
    """Writes the checkpoint that the probe reads into `folder`, atomically; an earlier one is replaced.

    An `optimizer` that has taken a step adds `exp_avg_sq.safetensors` and `optimizer.json`: its own count of steps, and
    the learning rate of its next step. A `critic` is written to `folder/critic`.

    Every process must call this function, for sharded weights are gathered from all of them. Only the first process
    writes; the others return before the files are there.
    """
    from po_dynamics.storage import sharding

    model, critic = sharding.unwrapped(model), sharding.unwrapped(critic)
    weights = sharding.weights(model)
    moments = sharding.second_moments(model, optimizer) if optimizer is not None else {}
    critic_weights = sharding.weights(critic) if critic is not None else {}
    if not is_first_process():
        return
    with atomic_folder(folder) as temporary:
        _write_model(model, weights, tokenizer, temporary)
        if optimizer is not None:
            _write_optimizer(moments, optimizer, temporary)
        if critic is not None:
            _write_model(critic, critic_weights, tokenizer, temporary / "critic")

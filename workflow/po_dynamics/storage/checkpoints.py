"""The checkpoints that the probe reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from po_dynamics.storage.atomic import atomic_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def _write_optimizer(moments: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer, folder: Path) -> None:
    from safetensors.torch import save_file

    if not moments:
        return
    save_file(moments, folder / "exp_avg_sq.safetensors")
    group = optimizer.param_groups[0]
    # Not the checkpoint's step: an update of PPO takes several optimizer steps, and bias correction needs their count.
    step = max(int(state["step"]) for state in optimizer.state.values())
    content = {"step": step, "learning_rate": float(group["lr"]), "betas": [float(b) for b in group["betas"]]}
    content |= {"eps": float(group["eps"]), "weight_decay": float(group["weight_decay"])}
    (folder / "optimizer.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def save_float32(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes weights (float32), configuration and tokenizer; `folder` loads with `from_pretrained`.

    Only through `save_pretrained`: TRL patches `forward` on the instance, and a deep copy would run the live weights.
    """
    from po_dynamics.storage import sharding

    _write_model(model, sharding.weights(model, everywhere=not sharding.is_sharded(model)), tokenizer, folder)


def _write_model(
    model: PreTrainedModel, weights: dict[str, torch.Tensor], tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
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

    With an optimizer that has taken a step also `exp_avg_sq.safetensors` and `optimizer.json`, whose step is the
    optimizer's own count and whose learning rate is that of the next step. `critic` goes to `folder/critic`. Every
    process calls it (sharded weights are gathered), the first one writes, and nobody waits for that.
    """
    from po_dynamics.storage import sharding

    model, critic = sharding.unwrapped(model), sharding.unwrapped(critic)
    weights = sharding.weights(model)
    moments = sharding.second_moments(model, optimizer) if optimizer is not None else {}
    critic_weights = sharding.weights(critic) if critic is not None else {}
    if not sharding.is_writer():
        return
    with atomic_folder(folder) as temporary:
        _write_model(model, weights, tokenizer, temporary)
        if optimizer is not None:
            _write_optimizer(moments, optimizer, temporary)
        if critic is not None:
            _write_model(critic, critic_weights, tokenizer, temporary / "critic")

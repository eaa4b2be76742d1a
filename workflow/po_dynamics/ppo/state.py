"""What a PPO run keeps on disk: the models it starts from, its exactly resumable state, the probe's checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import fsdp2_prepare_model
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from po_dynamics.errors import InputError
from po_dynamics.models import armorm, reward_models
from po_dynamics.models.critic import Critic
from po_dynamics.models.loading import load_model
from po_dynamics.ppo.update import Learner, make_optimizer
from po_dynamics.settings.online import Online
from po_dynamics.storage.atomic import atomic_folder, remove, write_json
from po_dynamics.storage.checkpoints import save_step

FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


def make_learner(policy: Path, reward: str | Path, settings: Online, accelerator: Accelerator) -> Learner:
    """Policy and critic in float32, dropout off, each with its own AdamW, prepared for the processes."""
    actor, critic = load_model(policy, device="cpu"), load_critic(reward, policy)
    for model in (actor, critic.model):
        model.train()
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
    (policy_, policy_optimizer), (critic_, critic_optimizer) = (
        prepare(model, rate, settings, accelerator)
        for model, rate in (
            (actor, settings.learning_rate),
            (critic, settings.critic_learning_rate or settings.learning_rate),
        )
    )
    return Learner(policy_, critic_, policy_optimizer, critic_optimizer, accelerator)


def prepare(
    model: nn.Module, rate: float, settings: Online, accelerator: Accelerator
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model as the processes share it, and its AdamW; sharding replaces the parameters of both at once."""
    if not accelerator.is_fsdp2:
        model = accelerator.prepare(model)
        return model, make_optimizer(model, rate, settings.weight_decay, settings.adam_epsilon)
    optimizer = make_optimizer(model, rate, settings.weight_decay, settings.adam_epsilon)
    model, optimizer = accelerator.prepare(model, optimizer)
    return model, unwrap(optimizer)


def place_frozen(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """A model that is only passed forward: sharded where policy and critic are, else whole on the device."""
    model = model.requires_grad_(False)
    return fsdp2_prepare_model(accelerator, model) if accelerator.is_fsdp2 else model.to(accelerator.device)


def load_critic(reward: str | Path, policy: Path) -> Critic:
    """The critic to start from: that of a PPO checkpoint, else the reward model, else the policy's backbone.

    A reward model serves only if it shares the policy's tokenizer and is an ordinary one-label model.
    """
    folder = Path(reward)
    if (policy / "critic").is_dir():
        return Critic.from_pretrained(policy / "critic")
    if folder.is_dir() and _can_be_critic(folder, policy):
        return Critic.from_pretrained(folder)
    return Critic.from_policy(policy)


def _can_be_critic(reward: Path, policy: Path) -> bool:
    config = json.loads((reward / "config.json").read_text())
    if armorm.ARCHITECTURE in config.get("architectures", []):
        return False
    return reward_models.same_tokenizer(reward_models.chat_tokenizer(reward), reward_models.chat_tokenizer(policy))


def save(state: Path, learner: Learner, step: int, kl_coefficient: float) -> None:
    """Writes state/resume atomically: both models and optimizers by parameter name, the step and the KL coefficient.

    Random numbers and the order of prompts are functions of (seed, step), the learning rate of the step, so nothing
    else is needed; names and full tensors make the state independent of the number of processes.
    """
    models, optimizers = {}, {}
    for name, model, optimizer in _parts(learner):
        models[name] = get_model_state_dict(model, options=FULL)
        optimizers[name] = get_optimizer_state_dict(model, optimizer, options=FULL)
    if learner.accelerator.is_main_process:
        with atomic_folder(state / "resume") as temporary:
            torch.save({"models": models, "optimizers": optimizers}, temporary / "state.pt")
            (temporary / "progress.json").write_text(json.dumps({"step": step, "kl_coefficient": kl_coefficient}))
    learner.accelerator.wait_for_everyone()


def restore(state: Path, learner: Learner) -> tuple[int, float] | None:
    """Loads what `save` wrote and returns (step, KL coefficient); None where there is nothing."""
    folder = state / "resume"
    if not (folder / "progress.json").is_file():
        return None
    stored = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    for name, model, optimizer in _parts(learner):
        set_model_state_dict(model, stored["models"][name], options=FULL)
        set_optimizer_state_dict(model, optimizer, stored["optimizers"][name], options=FULL)
    progress = json.loads((folder / "progress.json").read_text())
    return int(progress["step"]), float(progress["kl_coefficient"])


def _parts(learner: Learner) -> list[tuple[str, nn.Module, torch.optim.Optimizer]]:
    return [
        ("policy", learner.policy, unwrap(learner.policy_optimizer)),
        ("critic", learner.critic, unwrap(learner.critic_optimizer)),
    ]


def unwrap(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer inside accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def checkpoint(state: Path, step: int) -> Path:
    """Where a checkpoint lives until the run is complete."""
    return state / "checkpoints" / f"step-{step}"


def last_checkpoint(state: Path, step: int) -> Path | None:
    """The latest checkpoint at or before `step`."""
    steps = [int(path.name.removeprefix("step-")) for path in (state / "checkpoints").glob("step-*")]
    return checkpoint(state, max(s for s in steps if s <= step)) if any(s <= step for s in steps) else None


def require_checkpoints(state: Path, steps: Sequence[int]) -> None:
    """InputError where a checkpoint that the resumable state presupposes is gone."""
    if missing := [step for step in steps if not checkpoint(state, step).is_dir()]:
        raise InputError(f"{state}: the checkpoints of steps {missing} are gone: delete this folder to train afresh")


def save_checkpoint(state: Path, learner: Learner, tokenizer: Any, step: int, kl_coefficient: float) -> None:
    """step-<t>/ for the probe: policy and critic in float32, second moments by parameter name, the KL coefficient."""
    accelerator, folder = learner.accelerator, checkpoint(state, step)
    save_step(
        accelerator.unwrap_model(learner.policy),
        tokenizer,
        folder,
        optimizer=unwrap(learner.policy_optimizer),
        critic=accelerator.unwrap_model(learner.critic).model,
    )
    if accelerator.is_main_process:
        write_json(folder / "ppo.json", {"step": step, "kl_coefficient": kl_coefficient})
    accelerator.wait_for_everyone()


def publish(state: Path, output: Path, log: Path) -> None:
    """Moves the finished checkpoints and the training log to their places, then removes the state."""
    log.parent.mkdir(parents=True, exist_ok=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(state / "training.csv", log)
    if output.is_dir() and not any(output.iterdir()):
        output.rmdir()
    remove(output)
    (state / "checkpoints").mkdir(exist_ok=True)  # no checkpoint may have been asked for
    (state / "checkpoints").rename(output)
    remove(state)

"""What the tests of sharding run on two processes: `python -m torch.distributed.run … tiny_fsdp.py <what> <folder>`.

accelerate shards on graphics cards only; here its very code runs on the CPU, under gloo.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType

FSDP = {  # slurm/fsdp.yaml, as `accelerate launch` hands it over
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "ACCELERATE_TORCH_DEVICE": "cpu",
}


def shard_with_accelerate() -> None:
    os.environ |= FSDP
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)  # type: ignore[method-assign]


def steps(folder: Path) -> None:
    """The same two steps of a sharded and of a whole model, saved by `save_step`."""
    import toy
    from po_dynamics.storage.checkpoints import save_step
    from torch.distributed.fsdp import fully_shard

    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    for name in ("sharded", "whole"):
        model, critic = toy.tiny_model("llama", tie_word_embeddings=True), toy.tiny_model("qwen3", seed=1)
        if name == "sharded":
            fully_shard(model, mesh=mesh)
            fully_shard(critic, mesh=mesh)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for _ in range(2):
            model(input_ids=torch.arange(6)[None]).logits.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        save_step(model, toy.tiny_tokenizer(), folder / name, optimizer=optimizer, critic=critic)


def ppo(folder: Path) -> None:
    import tiny_ppo
    from po_dynamics.objectives.registry import bind
    from po_dynamics.ppo import state as ppo_state
    from po_dynamics.ppo import update
    from po_dynamics.ppo.train import train_online
    from po_dynamics.storage.sharding import is_sharded

    save, place_frozen, frozen = ppo_state.save, ppo_state.place_frozen, []

    def place(model: torch.nn.Module, accelerator: object) -> torch.nn.Module:
        frozen.append(place_frozen(model, accelerator))  # type: ignore[arg-type]
        return frozen[-1]

    ppo_state.place_frozen = place

    def save_once(state: Path, learner: update.Learner, step: int, kl_coefficient: float) -> None:
        assert is_sharded(learner.policy)
        assert is_sharded(learner.critic)
        assert [is_sharded(model) for model in frozen] == [True, True]  # the reward model and the reference
        save(state, learner, step, kl_coefficient)
        if step == 3 and not (folder / "interrupted").exists():
            torch.distributed.barrier()
            (folder / "interrupted").touch()
            os._exit(7)

    ppo_state.save = save_once
    inputs = [folder.parent / name for name in ("policy", "reward", "preferences.arrow")]
    outputs = [folder / name for name in ("output", "log", "state")]
    train_online(*inputs, *outputs, bind("ppo", {"epsilon": 0.2}), tiny_ppo.SETTINGS, 0)


def armorm(folder: Path) -> None:
    """Scores of ArmoRM, whole and sharded; what a process has is written to `folder`."""
    from accelerate import Accelerator
    from po_dynamics.models import reward_models
    from po_dynamics.ppo.state import place_frozen
    from po_dynamics.storage.sharding import is_sharded

    accelerator, placed = Accelerator(), []

    def place(model: torch.nn.Module) -> torch.nn.Module:
        placed.append(place_frozen(model, accelerator))
        return placed[-1]

    prompts = [[{"role": "user", "content": text}] for text in ("the fox", "owl", "a big bear")]
    responses = ["is red", "blue", "likes fish and berries"]
    scores = [
        reward_models.load(folder.parent / "armorm", batch_size=2, place=how)(prompts, responses)
        for how in (None, place)
    ]
    assert is_sharded(placed[0])
    torch.save(scores, folder / f"scores-{accelerator.process_index}.pt")


def offline(folder: Path) -> None:
    import tiny_offline
    from po_dynamics.storage import checkpoints
    from po_dynamics.storage.sharding import is_sharded

    save_step = checkpoints.save_step

    def save_once(model: torch.nn.Module, tokenizer: object, target: Path, **options: object) -> None:
        assert is_sharded(model)
        save_step(model, tokenizer, target, **options)  # type: ignore[arg-type]
        if target.name == "step-3" and not (folder / "interrupted").exists():
            torch.distributed.barrier()
            (folder / "interrupted").touch()
            os._exit(7)

    checkpoints.save_step = save_once
    tiny_offline.train(folder.parent, folder)


def sft(folder: Path) -> None:
    """Ends once between the last step and the publication of the model."""
    import tiny_sft
    from po_dynamics.training import resume

    train_resumably = resume.train_resumably

    def train_once(*args: object, **options: object) -> None:
        train_resumably(*args, **options)  # type: ignore[arg-type]
        interrupt_once(folder)

    resume.train_resumably = train_once
    tiny_sft.sft(folder.parent, folder)


def reward(folder: Path) -> None:
    """Ends once between the snapshot of the last step and the state of that step."""
    import tiny_sft
    from po_dynamics.training import resume

    save_step = resume.save_step

    def save_once(*args: object, **options: object) -> None:
        save_step(*args, **options)  # type: ignore[arg-type]
        interrupt_once(folder)

    resume.save_step = save_once
    tiny_sft.reward(folder.parent, folder)


def interrupt_once(folder: Path) -> None:
    if not (folder / "interrupted").exists():
        torch.distributed.barrier()
        (folder / "interrupted").touch()
        os._exit(7)


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what != "steps":
        shard_with_accelerate()
    torch.distributed.init_process_group("gloo")
    {"steps": steps, "ppo": ppo, "armorm": armorm, "offline": offline, "sft": sft, "reward": reward}[what](folder)
    torch.distributed.destroy_process_group()

"""Runs of offline training in the toy universe."""

import pandas as pd
from po_dynamics.objectives.registry import bind
from po_dynamics.training.offline import train_offline
from po_dynamics.training.preference_rewards import score_preferences
from po_dynamics.training.reference import compute_reference
from safetensors.torch import load_file
from toy import same_files, tiny_folder, write_preferences, write_tokens

SETTINGS = {
    "max_steps": 6,
    "batch_size": 8,
    "micro_batch_size": 4,
    "learning_rate": 3e-3,
    "lr_schedule": "cosine",
    "warmup_ratio": 0.2,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "max_length": 32,
    "precision": "fp32",
    "gradient_checkpointing": False,
    "save_every": 2,
    "checkpoints": [0, 2, 3, 6],
}

REFERENCE = {key: SETTINGS[key] for key in ("micro_batch_size", "max_length", "precision")}


def make_model(folder, seed=0):
    return tiny_folder(folder, seed=seed, dropout=0.1, max_length=64)


def make_pairs(path, **fourth):
    return write_preferences(path, 20, **fourth)


def make_world(root):
    make_model(root / "sft")
    tokens = write_tokens(make_pairs(root / "preferences.parquet"), root / "sft")
    compute_reference(root / "sft", tokens, root / "reference.parquet", REFERENCE)
    return root


def make_rewards(world):
    """rewards.parquet of the world's pairs: the number of words of a response."""
    settings = {"micro_batch_size": 4, "max_length": 32}
    score_preferences(world / "sft", world / "preferences.arrow", "toy:words", world / "rewards.parquet", settings)
    return world / "rewards.parquet"


def train(world, root, *, objective="dpo", parameters=None, first_step=0, init=None, seed=0, rewards=None, **settings):
    train_offline(
        init=init or world / "sft",
        preferences=world / "preferences.arrow",
        reference=world / "reference.parquet",
        output=root / "checkpoints",
        log=root / "training.csv",
        state=root / "state",
        objective=bind(objective, parameters or {"beta": 0.1}),
        settings={**SETTINGS, **settings},
        seed=seed,
        first_step=first_step,
        rewards=rewards,
    )
    return root


def log_of(root):
    return pd.read_csv(root / "training.csv").to_dict("records")


def weights(root, step):
    return load_file(root / "checkpoints" / f"step-{step}" / "model.safetensors")


def assert_same_files(a, b):
    assert any(a.rglob("*"))
    assert same_files(a, b) == []

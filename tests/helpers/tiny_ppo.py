"""Models of the language with BOS, and what online training needs: roll-outs, scorers and PPO share them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from po_dynamics.models.armorm import ArmoRM
from toy import bos_tokenizer, tiny_model, write_preferences, write_tokens
from transformers import LlamaConfig, PreTrainedModel

tokenizer = bos_tokenizer
SETTINGS: dict[str, Any] = {
    "max_steps": 4,
    "batch_size": 8,
    "micro_batch_size": 3,
    "epochs": 2,
    "mini_batches": 2,
    "learning_rate": 3e-3,
    "critic_learning_rate": 5e-3,
    "kl_coefficient": 0.1,
    "kl_target": 0.5,
    "missing_eos_penalty": 1.0,
    "max_prompt_length": 16,
    "max_new_tokens": 10,
    "save_every": 1,
    "checkpoints": [0, 2, 4],
}


_LANGUAGE = {"vocab": 26, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3}


def policy(seed: int = 0, **changes: Any) -> PreTrainedModel:
    return tiny_model(**{**_LANGUAGE, "seed": seed, "dropout": 0.1, "max_length": 64, **changes})


def llama(seed: int = 0) -> PreTrainedModel:
    return tiny_model("llama", **_LANGUAGE, seed=seed, num_attention_heads=4, num_key_value_heads=2, head_dim=4)


def write_world(folder: Path) -> dict[str, Path]:
    """policy/, reward/ (with a normalisation) and the tokens of preferences."""
    paths = {name: folder / name for name in ("policy", "reward")}
    policy().save_pretrained(paths["policy"])
    policy(1, scorer=True).save_pretrained(paths["reward"])
    for path in paths.values():
        tokenizer().save_pretrained(path)
    (paths["reward"] / "normalisation.json").write_text(json.dumps({"mean": 0.4, "std": 1.7}))
    rows = write_preferences(folder / "preferences.parquet", 12, seed=2)
    return paths | {"prompts": write_tokens(rows, paths["policy"])}


def armorm(folder: Path) -> ArmoRM:
    """A random ArmoRM of the language, stored as the published one is."""
    config = LlamaConfig(
        vocab_size=26,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.3,
        pad_token_id=1,
        num_objectives=5,
        gating_hidden_dim=7,
        gating_n_hidden=2,
        gating_temperature=3.0,
        gating_token_pattern=[4],
    )
    torch.manual_seed(0)
    model = ArmoRM(config).eval()
    with torch.no_grad():
        model.reward_transform_matrix.copy_(torch.eye(5) + 0.3 * torch.randn(5, 5))
        model.gating.logit_scale.fill_(1.3)
        for layer in model.gating.layers:
            layer.weight.normal_()
            layer.bias.normal_()
    model.save_pretrained(folder)
    stored = json.loads((folder / "config.json").read_text())
    stored["architectures"] = ["LlamaForRewardModelWithGating"]  # as published
    (folder / "config.json").write_text(json.dumps(stored))
    tokenizer().save_pretrained(folder)
    return model

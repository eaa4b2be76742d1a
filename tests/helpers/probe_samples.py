"""Tiny random models and samples for the tests of the probe."""

from __future__ import annotations

import numpy as np
import torch
from po_dynamics.data.preferences import EncodedPair
from po_dynamics.probe.samples import Sample, final_samples, pair_samples
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 61
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
FAMILIES = ("neox", "qwen3", "llama")


def tiny(family: str = "neox", seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model; Qwen3 with tied embeddings, Qwen3 and Llama with grouped heads."""
    torch.manual_seed(seed)
    grouped = _SIZES | {"num_key_value_heads": 2}
    classes = {
        "neox": (GPTNeoXForCausalLM, GPTNeoXConfig(**_SIZES, initializer_range=0.2)),
        "qwen3": (
            Qwen3ForCausalLM,
            Qwen3Config(**grouped, head_dim=8, tie_word_embeddings=True, initializer_range=0.2),
        ),
        "llama": (LlamaForCausalLM, LlamaConfig(**grouped, initializer_range=0.2)),
    }
    model, config = classes[family]
    return model._from_config(config, attn_implementation="eager").to(dtype).eval()


def ids(rng: np.random.Generator, low: int, high: int) -> list[int]:
    return rng.integers(0, VOCABULARY, int(rng.integers(low, high))).tolist()


def pairs(n: int, seed: int = 0, batch_size: int = 4) -> list[Sample]:
    rng = np.random.default_rng(seed)
    encoded = [EncodedPair(f"p{i}", ids(rng, 2, 9), ids(rng, 1, 14), ids(rng, 1, 14)) for i in range(n)]
    return pair_samples(encoded, batch_size)


def final(n: int, seed: int = 1, batch_size: int = 4) -> list[Sample]:
    rng = np.random.default_rng(seed)
    return final_samples([(ids(rng, 2, 9), ids(rng, 1, 14)) for _ in range(n)], batch_size)


def rollouts(n: int, seed: int = 2, batch_size: int = 6) -> list[Sample]:
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(n):
        prompt, response = ids(rng, 2, 9), ids(rng, 1, 14)
        raw = rng.normal(0.3, 2, len(response))
        reference = rng.normal(-3, 1, len(response))
        sample = Sample(f"r{i}", "train", i // batch_size, "rollout", prompt, response, reference, (raw - 0.3) / 2, raw)
        samples.append(sample)
    return samples

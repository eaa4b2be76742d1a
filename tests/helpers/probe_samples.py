"""Samples of random tokens, and models of such a vocabulary, for the tests of the probe."""

from __future__ import annotations

import numpy as np
import torch
import toy
from po_dynamics.data.preferences import EncodedPair
from po_dynamics.probe.samples import Sample, final_samples, pair_samples
from transformers import PreTrainedModel

VOCABULARY = 61
FAMILIES = {"neox": "gpt_neox", "qwen3": "qwen3", "llama": "llama"}


def tiny(family: str = "neox", seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Three layers and four heads; Qwen3 with tied embeddings, Qwen3 and Llama with grouped heads.

    No token is a pad token: its embedding would be zero, where normalisation has enormous derivatives.
    """
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    options = {"max_length": 64, "attn_implementation": "eager", "tie_word_embeddings": family == "qwen3"}
    options |= {"pad_token_id": None}
    grouped = {} if family == "neox" else {"num_key_value_heads": 2}
    return toy.tiny_model(FAMILIES[family], VOCABULARY, seed=seed, dtype=dtype, **sizes, **grouped, **options)


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

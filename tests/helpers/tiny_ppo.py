"""A language of 20 words with tiny models of it: what the tests of roll-outs, scorers and PPO share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

torch.set_num_threads(1)  # sums in one order, whoever runs the tests

WORDS = [f"w{k}" for k in range(20)]
SPECIAL = ["<bos>", "<pad>", "<eos>", "<user>", "<bot>", "<unk>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<user> ' if m['role'] == 'user' else '<bot> ' }}{{ m['content'] }} "
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<bot> {% endif %}"
)
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


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: k for k, token in enumerate(SPECIAL + WORDS)}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.add_special_tokens(SPECIAL)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<bos>", pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


def config(**changes: Any) -> GPTNeoXConfig:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return GPTNeoXConfig(
        vocab_size=26,
        max_position_embeddings=64,
        initializer_range=0.3,
        hidden_dropout=0.1,
        attention_dropout=0.1,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        **{**sizes, **changes},
    )


def policy(seed: int = 0, **changes: Any) -> GPTNeoXForCausalLM:
    torch.manual_seed(seed)
    return GPTNeoXForCausalLM(config(**changes)).eval()


def llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=26, intermediate_size=32, initializer_range=0.3, pad_token_id=1, eos_token_id=2, **sizes)
    ).eval()


def write_world(folder: Path) -> dict[str, Path]:
    """policy/, reward/ (with a normalisation) and preferences.parquet."""
    words = tokenizer()
    paths = {name: folder / name for name in ("policy", "reward")} | {"prompts": folder / "preferences.parquet"}
    policy().save_pretrained(paths["policy"])
    torch.manual_seed(1)
    GPTNeoXForSequenceClassification(config(num_labels=1)).save_pretrained(paths["reward"])
    for name in ("policy", "reward"):
        words.save_pretrained(paths[name])
    (paths["reward"] / "normalisation.json").write_text(json.dumps({"mean": 0.4, "std": 1.7}))
    generator = torch.Generator().manual_seed(2)
    rows = []
    for k in range(12):
        length = int(torch.randint(1, 7, (), generator=generator))
        picked = torch.randint(0, len(WORDS), (length,), generator=generator).tolist()
        rows.append({"id": f"p{k}", "prompt": [{"role": "user", "content": " ".join(WORDS[i] for i in picked)}]})
    pd.DataFrame(rows).to_parquet(paths["prompts"])
    return paths


def reward_by_length(prompts: Any, responses: Any) -> list[float]:
    """Likes short answers: a reward that is a plain function."""
    return [-float(len(response.split())) for response in responses]

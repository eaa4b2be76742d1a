"""Tiny models, tokenizers and data for tests: made in milliseconds, from explicit seeds, without any network."""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

_WORDS = "the a fox owl bear is red blue big small likes eats fish berries in forest and sea what where"
WORDS = tuple(_WORDS.split(" "))
ROLES = ("<user>", "<assistant>", "<system>")
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '> ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ ' ' + eos_token }}{% else %}{{ ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def tiny_tokenizer(*, pad: str | None = "<pad>", template: str | None = TEMPLATE, eos: str | None = "<eos>") -> Any:
    """Word level; `pad=None` leaves it without a pad token, `pad="<eos>"` makes it EOS."""
    special = ["<unk>", "<eos>", "<pad>"] if pad == "<pad>" else ["<unk>", "<eos>"]
    vocabulary = {token: i for i, token in enumerate([*special, *ROLES, *WORDS, *"0123456789.?"])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"eos_token": eos, "pad_token": pad, "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **{k: v for k, v in names.items() if v is not None})
    tokenizer.chat_template = template
    return tokenizer


def tiny_model(
    architecture: str = "gpt_neox",
    vocab: int | None = None,
    *,
    seed: int = 0,
    hidden: int = 16,
    layers: int = 2,
    dropout: float = 0.0,
    max_length: int = 128,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> PreTrainedModel:
    """A random causal model ("gpt_neox", "qwen3" or "llama"); `vocab` defaults to that of `tiny_tokenizer`."""
    tokenizer = tiny_tokenizer()
    settings: dict[str, Any] = {
        "vocab_size": vocab or len(tokenizer),
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": max_length,
        "attention_dropout": dropout,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.2,
    }
    if architecture == "gpt_neox":
        settings["hidden_dropout"] = dropout
    else:
        settings |= {"num_key_value_heads": 1, "head_dim": hidden // 2}
    config = AutoConfig.for_model(architecture, **(settings | options))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def tiny_folder(
    folder: Path,
    architecture: str = "gpt_neox",
    tokenizer: PreTrainedTokenizerBase | None = None,
    **options: Any,
) -> Path:
    """Saves `tiny_model` with its tokenizer; returns the folder."""
    tokenizer = tokenizer or tiny_tokenizer()
    tiny_model(architecture, **options).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sentence(generator: random.Random, words: int) -> str:
    return " ".join(generator.choice(WORDS) for _ in range(words)) + " ."


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def write_sft(path: Path, rows: int = 24, seed: int = 0) -> Path:
    """sft.parquet: `id, prompt, completion`."""
    g = random.Random(seed)
    prompts = [user(sentence(g, g.randint(2, 6))) for _ in range(rows)]
    completions = [assistant(sentence(g, g.randint(1, 9))) for _ in range(rows)]
    table = pd.DataFrame({"id": [f"s{i}" for i in range(rows)], "prompt": prompts, "completion": completions})
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path)
    return path


def write_preferences(path: Path, rows: int = 24, seed: int = 0) -> Path:
    """preferences.parquet: `id, prompt, chosen, rejected`; the chosen response speaks of the fox."""
    g = random.Random(seed)
    prompts = [user(sentence(g, g.randint(2, 6))) for _ in range(rows)]
    chosen = [assistant("the fox " + sentence(g, g.randint(1, 7))) for _ in range(rows)]
    rejected = [assistant("the owl " + sentence(g, g.randint(1, 7))) for _ in range(rows)]
    columns = {"id": [f"p{i}" for i in range(rows)], "prompt": prompts, "chosen": chosen, "rejected": rejected}
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_parquet(path)
    return path


def write_prompts(path: Path, rows: int = 10, seed: int = 0) -> Path:
    """final_prompts.parquet or eval_prompts.parquet: `id, prompt`."""
    g = random.Random(seed)
    prompts = [user(sentence(g, g.randint(2, 6))) for _ in range(rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"id": [f"q{i}" for i in range(rows)], "prompt": prompts}).to_parquet(path)
    return path


def in_child(function: Callable[[], object], *, signal_after: float | None = None, signal_number: int = 9) -> int:
    """Runs `function` in a forked process, which a signal may end after some seconds; returns its exit code.

    A fork has all imports done, so that killing many runs costs little. Negative codes are signals.
    """
    torch.set_num_threads(1)  # OpenMP threads do not survive a fork
    process = os.fork()
    if process == 0:
        code = 1
        try:
            function()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if signal_after is not None:
        time.sleep(signal_after)
        os.kill(process, signal_number)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def die() -> None:
    """SIGKILL to the own process."""
    os.kill(os.getpid(), signal.SIGKILL)


def same_files(one: Path, other: Path) -> list[str]:
    """Names of the files that differ, or are missing on one side."""
    names = {str(f.relative_to(root)) for root in (one, other) for f in root.rglob("*") if f.is_file()}
    paths = {name: (one / name, other / name) for name in sorted(names)}
    return [n for n, (a, b) in paths.items() if not (a.exists() and b.exists() and a.read_bytes() == b.read_bytes())]

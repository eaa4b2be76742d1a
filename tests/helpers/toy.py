"""The toy universe: two languages, tiny models of them, and data, made in milliseconds from explicit seeds.

Everything that tests train, sample from, score or probe is made here; a helper per topic (`tiny_offline`, `tiny_ppo`,
`probe_samples`) adds the calls of its stage.
"""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from po_dynamics.data.tokens.tokenising import tokenise
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

_WORDS = "the a fox owl bear is red blue big small likes eats fish berries in forest and sea what where"
WORDS = tuple(_WORDS.split(" "))
ROLES = ("<user>", "<assistant>")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<' + message['role'] + '> ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ ' ' + eos_token }}{% else %}{{ ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def tiny_tokenizer(*, pad: str | None = "<pad>", template: str | None = TEMPLATE, eos: str | None = "<eos>") -> Any:
    """The language without BOS, as Pythia's: UNK 0, EOS 1, PAD 2, roles from 3 on, words from 6 on; 38 tokens.

    `pad=None` leaves it without a pad token, `pad="<eos>"` makes it EOS; both have 37 tokens.
    """
    special = ["<unk>", "<eos>", "<pad>"] if pad == "<pad>" else ["<unk>", "<eos>"]
    tokens = [*special, *ROLES, "<system>", *WORDS, *"0123456789.?"]
    return _word_level(tokens, template, eos_token=eos, pad_token=pad)


def bos_tokenizer() -> PreTrainedTokenizerFast:
    """The language with BOS, as Llama's: BOS 0, PAD 1, EOS 2, roles from 3 on, UNK 5, words from 6 on; 26 tokens."""
    tokens = ["<bos>", "<pad>", "<eos>", *ROLES, "<unk>", *WORDS]
    return _word_level(tokens, TEMPLATE, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


def _word_level(tokens: Sequence[str], template: str | None, **names: str | None) -> PreTrainedTokenizerFast:
    backend = Tokenizer(WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    given = {name: token for name, token in names.items() if token is not None}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **given)
    tokenizer.chat_template = template
    return tokenizer


def tiny_model(
    architecture: str = "gpt_neox",
    vocab: int = 38,
    *,
    seed: int = 0,
    dropout: float = 0.0,
    max_length: int = 128,
    dtype: torch.dtype = torch.float32,
    scorer: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """A random model ("gpt_neox", "qwen3" or "llama") in evaluation mode; `scorer` gives it one score for a head.

    Sizes and ids are those of `tiny_tokenizer`; `options` are entries of its configuration that differ.
    """
    settings: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": max_length,
        "attention_dropout": dropout,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "initializer_range": 0.2,
    }
    if architecture == "gpt_neox":
        settings["hidden_dropout"] = dropout
    else:
        settings |= {"num_key_value_heads": 1, "head_dim": 8}
    attention = options.pop("attn_implementation", None)
    config = AutoConfig.for_model(architecture, **(settings | ({"num_labels": 1} if scorer else {}) | options))
    build = AutoModelForSequenceClassification if scorer else AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build.from_config(config, dtype=dtype, attn_implementation=attention).eval()


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


def write_tokens(rows: Path, model: Path, data_set: str = "preferences") -> Path:
    """The tokens of a table of rows, as the stages of the model read them; beside the rows, as `.arrow`."""
    output = rows.with_suffix(".arrow")
    tokenise(model, rows, data_set, output, special_tokens=True, parallel=False)
    return output


def write_sft(path: Path, rows: int = 24, seed: int = 0) -> Path:
    """sft.parquet: `id, prompt, completion`."""
    g = random.Random(seed)
    prompts = [user(sentence(g, g.randint(2, 6))) for _ in range(rows)]
    completions = [assistant(sentence(g, g.randint(1, 9))) for _ in range(rows)]
    table = pd.DataFrame({"id": [f"s{i}" for i in range(rows)], "prompt": prompts, "completion": completions})
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path)
    return path


def write_preferences(path: Path, rows: int = 24, seed: int = 0, **fourth: Any) -> Path:
    """preferences.parquet: `id, prompt, chosen, rejected`; the chosen response speaks of the fox.

    `fourth` replaces cells of the row p3.
    """
    g = random.Random(seed)
    prompts = [user(sentence(g, g.randint(2, 6))) for _ in range(rows)]
    chosen = [assistant("the fox " + sentence(g, g.randint(1, 7))) for _ in range(rows)]
    rejected = [assistant("the owl " + sentence(g, g.randint(1, 7))) for _ in range(rows)]
    columns = {"id": [f"p{i}" for i in range(rows)], "prompt": prompts, "chosen": chosen, "rejected": rejected}
    for name, value in fourth.items():
        columns[name][3] = value
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


def words(prompts: Sequence[Any], responses: Sequence[str]) -> list[float]:
    """A reward: the number of words."""
    return [float(len(response.split())) for response in responses]


def nothing(prompts: Sequence[Any], responses: Sequence[str]) -> list[float]:
    """A reward that is not finite."""
    return [float("nan")] * len(responses)


def reward_by_length(prompts: Sequence[Any], responses: Sequence[str]) -> list[float]:
    """A reward that likes short answers."""
    return [-reward for reward in words(prompts, responses)]


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

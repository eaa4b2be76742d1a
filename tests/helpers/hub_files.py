"""Files in exactly the hub's schemas, with the odd rows that real data have, and tiny models of three architectures."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from toy import assistant, sentence, tiny_folder, user
from transformers import PreTrainedTokenizerFast

CONTEXT = 2048
# As in Qwen's vocabulary: turns between special tokens, and a pad token that is not EOS.
CHATML = (
    "{% for message in messages %}{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n<|im_start|>assistant\\n' }}{% endif %}"
)
# Architecture: special tokens, and how the tokenizer uses them.
VOCABULARIES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "gpt_neox": (["<|endoftext|>", "<|padding|>"], {"eos_token": "<|endoftext|>"}),
    "llama": (
        ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>"],
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
    ),
    "qwen3": (
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHATML},
    ),
}


def byte_level(architecture: str) -> PreTrainedTokenizerFast:
    """A byte-level vocabulary with the special tokens of the architecture's published models."""
    special, uses = VOCABULARIES[architecture]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    texts = [sentence(random.Random(i), 8) for i in range(50)]
    backend.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=330, special_tokens=special, initial_alphabet=alphabet)
    )
    if "bos_token" in uses:
        bos = uses["bos_token"]
        backend.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, special.index(bos))])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **uses)


def write_model(folder: Path, architecture: str, *, scorer: bool = False, seed: int = 0) -> Path:
    """A Hugging Face folder as it comes from the hub: context of the paper's lengths, tokenizer not prepared."""
    tokenizer = byte_level(architecture)
    if scorer:  # published reward models bring their template
        tokenizer.chat_template = CHATML
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    options = {"vocab": len(tokenizer) + 8, "max_length": CONTEXT, "bos_token_id": tokenizer.bos_token_id, **ids}
    return tiny_folder(folder, architecture, tokenizer, scorer=scorer, seed=seed, initializer_range=0.05, **options)


def write_data(root: Path) -> None:
    """UltraChat, binarised UltraFeedback, HH-RLHF and AlpacaEval in their files, below `root`."""
    g = random.Random(0)
    _lines(root / "sft.jsonl", _ultrachat(g))
    _lines(root / "preferences.jsonl", _ultrafeedback(g))
    _lines(root / "hh/helpful-base/test.jsonl.gz", _hh(g))
    _lines(root / "hh/harmless-base/test.jsonl.gz", _hh(g))
    (root / "alpaca_eval").mkdir()
    questions = [{"dataset": "helpful_base", "instruction": "Hi there fox", "output": "x", "generator": "y"}]
    questions += [{**questions[0], "instruction": sentence(g, 6)} for _ in range(5)]
    (root / "alpaca_eval/alpaca_eval.json").write_text(json.dumps(questions))


def _lines(path: Path, rows: Iterable[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _ultrachat(g: random.Random) -> list[Any]:
    turns = [[*user(sentence(g, 6)), *assistant(sentence(g, 9)), *user("why"), *assistant("so")] for _ in range(12)]
    turns += [user("no answer"), [*user("a"), *user("b"), *assistant("c")], [*user("long"), *assistant("fox " * 3000)]]
    return [{"prompt": rows[0]["content"], "prompt_id": str(i), "messages": rows} for i, rows in enumerate(turns)]


def _ultrafeedback(g: random.Random) -> list[Any]:
    pairs = [(sentence(g, 8), sentence(g, 9), sentence(g, 7)) for _ in range(20)]
    pairs += [
        ("ಕ" * 1100, "dense", "script"),  # 1100 characters are three times as many tokens: above the context
        ("ಕ" * 400, "dense", "too"),  # above the length of a pair
        ("fox " * 270, "longer than a", "roll-out's prompt"),  # but not than a pair
        ("fox", "cut " * 900, "at the end"),
        ("fox", "a prompt of", "two rows"),
        ("fox", "same answer", "same  answer"),
        ("owl", "", "empty"),
        ("owl", " \n ", "blank"),
        ("bear", "ends <|endoftext|> early", "for two"),
        ("bear", "ends <|end_of_text|> early", "for one"),
    ]
    rows = [{"prompt": p, "chosen": user(p) + assistant(y), "rejected": user(p) + assistant(n)} for p, y, n in pairs]
    doubled = [*user("a"), *user("b")]
    rows.append({"prompt": "a", "chosen": doubled + assistant("c"), "rejected": doubled + assistant("d")})
    return [{**row, "prompt_id": str(i), "score_chosen": 8.0, "score_rejected": 6.0} for i, row in enumerate(rows)]


def _hh(g: random.Random) -> list[Any]:
    openings = ["Hi there fox", *(sentence(g, 5) for _ in range(7)), "Hi there fox", "a\n\nHuman: b"]
    start = [f"\n\nHuman: {opening}\n\nAssistant: " for opening in openings]
    return [{"chosen": text + "yes", "rejected": text + "no"} for text in start]

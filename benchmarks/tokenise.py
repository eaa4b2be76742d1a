"""Tokenising preference pairs: the stage that writes the mapped table, against row by row, in one run on one machine.

    python benchmarks/tokenise.py [--pairs 60000] [--tokens 500]

The texts are pieces of the standard library's sources, the vocabulary (32 000, byte-level) is learned from them: no
network. A pair is a prompt and two answers, `--tokens` in each of its two conversations. Row by row is measured on a
few hundred of the pairs, with the functions that tokenise one message.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROWS = 300  # of the measurement row by row


def write_model(folder: Path, text: str) -> None:
    """A model of a few thousand parameters with a vocabulary that is learned from the text."""
    from po_dynamics.models.tokenizers import prepare_tokenizer
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special, alphabet = ["<|endoftext|>", "<|padding|>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=32_000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(text.split("\n\n"), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=special[0])
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=len(tokenizer), max_position_embeddings=4096, **sizes))
    prepare_tokenizer(tokenizer, model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def pairs(text: str, count: int, characters: int) -> Iterator[dict[str, Any]]:
    """Pairs whose prompt has two fifths of the characters of a conversation."""
    g = random.Random(0)

    def piece(role: str, share: float) -> list[dict[str, str]]:
        start = g.randrange(len(text) - characters)
        return [{"role": role, "content": text[start : start + round(share * characters)]}]

    for i in range(count):
        answers = {name: piece("assistant", 0.6) for name in ("chosen", "rejected")}
        yield {"id": f"p{i}", "prompt": piece("user", 0.4), **answers}


def characters_per_token(folder: Path, text: str) -> float:
    from po_dynamics.models.tokenizers import load_tokenizer

    sample = text[: 10**6]
    return len(sample) / len(load_tokenizer(folder)(sample)["input_ids"])


def row_by_row(folder: Path, rows: Path) -> float:
    """Seconds per pair."""
    import pyarrow.parquet as pq
    from po_dynamics.models.tokenizers import encode_prompt, encode_response, load_tokenizer

    tokenizer, table = load_tokenizer(folder), next(pq.ParquetFile(rows).iter_batches(ROWS)).to_pylist()
    started = time.perf_counter()
    for row in table:
        encode_prompt(tokenizer, row["prompt"])
        for role in ("chosen", "rejected"):
            encode_response(tokenizer, row["prompt"], row[role][0])
    return (time.perf_counter() - started) / len(table)


def stage(folder: Path, rows: Path, output: Path) -> None:
    """The stage in a process of its own, as the workflow runs it."""
    from po_dynamics.data.tokens.table import TokenTable
    from po_dynamics.data.tokens.tokenising import tokenise

    started = time.perf_counter()
    tokenise(folder, rows, "preferences", output, special_tokens=False, parallel=True)
    seconds, usage = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    table = TokenTable(output, "chosen_ids", "rejected_ids")
    lengths = table.lengths("prompt_ids") + table.lengths("chosen_ids")
    about = {"rows": len(table), "tokens": float(lengths.mean()), "seconds": seconds}
    print(json.dumps(about | {"cpu": usage.ru_utime + usage.ru_stime, "mb": usage.ru_maxrss / 1024}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60_000)
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--stage", nargs=3, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        return stage(*arguments.stage)
    from po_dynamics.data.schema import COLUMNS, write_rows

    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = "\n\n".join(source.read_text(encoding="utf-8", errors="replace") for source in sources)
    with tempfile.TemporaryDirectory() as temporary:
        folder, rows, output = (Path(temporary) / name for name in ("base", "rows.parquet", "tokens.arrow"))
        write_model(folder, text)
        characters = round(arguments.tokens * characters_per_token(folder, text))
        write_rows(pairs(text, arguments.pairs, characters), rows, COLUMNS["preferences"])
        command = [sys.executable, __file__, "--stage", str(folder), str(rows), str(output)]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        slow = row_by_row(folder, rows) * arguments.pairs
        print(
            f"{found['rows']} pairs of {found['tokens']:.0f} tokens: {found['seconds']:.0f} s, {found['cpu']:.0f} s of "
            f"CPU, peak {found['mb']:.0f} MB, table {output.stat().st_size / 2**20:.0f} MB; row by row {slow:.0f} s: "
            f"{slow / found['seconds']:.1f} times as long"
        )
    return None


if __name__ == "__main__":
    main()

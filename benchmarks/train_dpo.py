"""Speed of offline training against TRL's own DPOTrainer, same model, pairs, batch and process.

    python benchmarks/train_dpo.py [--hidden 96 --layers 2 --vocab 640 --batch 32 --steps 20 --rounds 5 --device cpu]

The random model has the shape of the embedded world's (weights do not matter for speed). Each round trains every
variant in turn, so that a busy machine slows all of them alike; a variant's speed is its median over the rounds.

* ours: `OfflineTrainer` (stored reference log-probs), every step logged, as `train_offline` runs it;
* trl precomputed: `DPOTrainer` with `precompute_ref_log_probs=True` (the time for that is not counted);
* trl reference: `DPOTrainer` as it comes, with a reference model in memory.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from po_dynamics.objectives.registry import bind
from po_dynamics.training.offline_trainer import OfflineTrainer, StepRecord
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast
from transformers.trainer_callback import PrinterCallback
from trl import DPOConfig, DPOTrainer

Pair = tuple[list[int], list[int], list[int]]  # ids of prompt, chosen and rejected response


def make_tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, vocab)}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="w2"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="w2")


def make_pairs(options: argparse.Namespace) -> list[Pair]:
    """Lengths like those of the world: prompts of 6 to 20 tokens, responses of 8 to 50 (scaled by --scale)."""
    draw, scale = random.Random(0), options.scale

    def ids(low: int, high: int, end: list[int]) -> list[int]:
        return [draw.randrange(2, options.vocab) for _ in range(scale * draw.randint(low, high))] + end

    count = options.batch * options.steps
    return [(ids(6, 20, []), ids(8, 50, [1]), ids(8, 50, [1])) for _ in range(count)]


def make_model(options: argparse.Namespace) -> GPTNeoXForCausalLM:
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=options.vocab,
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=max(4, options.hidden // 80),
        intermediate_size=4 * options.hidden,
        max_position_embeddings=2048,
        pad_token_id=0,
        eos_token_id=1,
    )
    return GPTNeoXForCausalLM(config)


def make_arguments(options: argparse.Namespace, folder: str, **extra: Any) -> DPOConfig:
    return DPOConfig(
        folder,
        per_device_train_batch_size=options.micro,
        gradient_accumulation_steps=options.batch // options.micro,
        max_steps=options.steps,
        learning_rate=1e-6,
        max_length=None,
        bf16=options.device == "cuda",
        gradient_checkpointing=options.device == "cuda",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=options.device == "cpu",
        dataloader_pin_memory=options.device == "cuda",
        **extra,
    )


def ours(options: argparse.Namespace, pairs: list[Pair], folder: str) -> Any:
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = [
        {"id": str(i), "ref_chosen_logps": -80.0, "ref_rejected_logps": -80.0} | dict(zip(names, pair, strict=True))
        for i, pair in enumerate(pairs)
    ]
    arguments = make_arguments(options, folder, logging_steps=1)
    tokenizer = make_tokenizer(options.vocab)
    trainer = OfflineTrainer(make_model(options), arguments, tokenizer, rows, bind("dpo", {"beta": 0.1}))
    trainer.add_callback(StepRecord(trainer))
    return trainer


def trl(options: argparse.Namespace, pairs: list[Pair], folder: str, precompute: bool) -> Any:
    text = [[" ".join("<eos>" if i == 1 else f"w{i}" for i in ids) for ids in pair] for pair in pairs]
    # Prompt and response are joined as texts, so the response needs a blank in front.
    rows = [{"prompt": p, "chosen": " " + chosen, "rejected": " " + rejected} for p, chosen, rejected in text]
    return DPOTrainer(
        model=make_model(options),
        ref_model=make_model(options),
        args=make_arguments(options, folder, precompute_ref_log_probs=precompute, train_sampling_strategy="sequential"),
        train_dataset=Dataset.from_list(rows),
        processing_class=make_tokenizer(options.vocab),
    )


VARIANTS: dict[str, Callable[..., Any]] = {
    "ours": ours,
    "trl precomputed": lambda *a: trl(*a, precompute=True),
    "trl reference": lambda *a: trl(*a, precompute=False),
}


def measure(variant: str, options: argparse.Namespace, pairs: list[Pair]) -> tuple[float, float]:
    """(seconds of training, peak memory in MiB: of the GPU, or of this process)."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = VARIANTS[variant](options, pairs, folder)
        if variant == "trl precomputed":
            trainer.ref_model = None  # it has done its work
        trainer.remove_callback(PrinterCallback)
        gc.collect()
        if options.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        trainer.train()
        if options.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    if options.device == "cuda":
        return seconds, torch.cuda.max_memory_allocated() / 2**20
    # Not ru_maxrss: a process inherits that from the one that started it.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return seconds, int(status["VmHWM"].split()[0]) / 1024


def one_process(options: argparse.Namespace) -> dict[str, Any]:
    """Interleaved rounds; the first, a warm-up, does not count."""
    pairs = make_pairs(options)
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    memory = dict.fromkeys(VARIANTS, 0.0)
    for round_ in range(options.rounds + 1):
        for name in VARIANTS:
            elapsed, peak = measure(name, options, pairs)
            memory[name] = max(memory[name], peak)
            if round_:
                seconds[name].append(elapsed)
            print(f"round {round_} {name}: {len(pairs) / elapsed:.1f} pairs/s", file=sys.stderr, flush=True)
    return {
        name: {"pairs_per_s": len(pairs) / statistics.median(times), "seconds": times, "peak_mib": memory[name]}
        for name, times in seconds.items()
    }


def memory_on_cpu(options: argparse.Namespace) -> dict[str, float]:
    """Peak resident memory in MiB of a process that trains one variant once: a peak never falls within a process."""
    import subprocess

    peaks = {}
    for name in VARIANTS:
        command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peaks[name] = float(output.split()[-1])
    return peaks


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark, for `benchmarks/train.py dpo` too."""
    for name, default, text in (
        ("hidden", 96, "width"),
        ("layers", 2, "layers"),
        ("vocab", 640, "tokens"),
        ("batch", 32, "pairs per step"),
        ("micro", 32, "pairs per forward pass"),
        ("steps", 20, "steps per round"),
        ("rounds", 5, "rounds that count"),
        ("scale", 1, "factor on the lengths"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default {default})")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", choices=list(VARIANTS), help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="write the numbers as JSON too")


def run(options: argparse.Namespace) -> None:
    if options.only:
        print(measure(options.only, options, make_pairs(options))[1])
        return
    results = one_process(options)
    if options.device == "cpu":
        for name, peak in memory_on_cpu(options).items():
            results[name]["peak_mib"] = peak
    print(f"{'':16} {'pairs/s':>9} {'ours is':>9} {'peak MiB':>9}")
    for name, row in results.items():
        ratio = results["ours"]["pairs_per_s"] / row["pairs_per_s"]
        print(f"{name:16} {row['pairs_per_s']:9.1f} {ratio:8.2f}x {row['peak_mib']:9.0f}")
    if options.output:
        options.output.write_text(json.dumps({"options": vars(options), "results": results}, default=str, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    run(parser.parse_args())

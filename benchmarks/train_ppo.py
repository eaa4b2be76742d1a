"""PPO episodes per second and peak memory: this package against TRL 1.12's PPOTrainer, in one run on one machine.

    python benchmarks/train_ppo.py [--rounds 3] [--updates 6] [--results results/demo/menagerie]

TRL 1.12 (the last version with a PPOTrainer) is installed without its dependencies into a virtual environment of its
own, which sees this environment's torch and transformers: everything but the trainer is the same. Both train the same
models on the same prompts with the same batch, epochs, optimizer steps and length limit; they run in turns, each in a
process of its own. The first update of each (warm-up) does not count; the figure is the median over the others.
Without `--results` the models have the demo's size and random weights.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TRL = "trl==1.12.0"
BATCH, EPOCHS, NEW_TOKENS, TEMPERATURE = 32, 2, 52, 1.0
TARGET = 1.5


def main() -> None:
    arguments = parse()
    if arguments.worker:
        print(json.dumps(WORKERS[arguments.worker](arguments.folder, arguments.updates)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_inputs(folder, arguments.results)
        interpreters = {"ours": sys.executable, "trl": str(trl_environment(folder / "environment"))}
        results: dict[str, list[dict[str, float]]] = {name: [] for name in interpreters}
        for turn in range(arguments.rounds):
            for name, interpreter in interpreters.items():
                results[name].append(measure(interpreter, name, folder, arguments.updates))
                print(f"round {turn + 1} {name}: {results[name][-1]}", file=sys.stderr, flush=True)
    report(results)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--results", type=Path, help="a model's folder with sft/, reward/ and preferences.parquet")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def trl_environment(folder: Path) -> Path:
    """A virtual environment with TRL 1.12 in front of this environment's packages; returns its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    packages = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", TRL], check=True)
    (Path(packages) / "parent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def measure(python: str, worker: str, folder: Path, updates: int) -> dict[str, float]:
    command = [python, __file__, "--worker", worker, "--folder", str(folder), "--updates", str(updates)]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        sys.exit(f"{worker} failed:\n{process.stderr[-3000:]}")
    return json.loads(process.stdout.strip().splitlines()[-1])


def write_inputs(folder: Path, results: Path | None) -> None:
    """sft/, reward/ and preferences.parquet of the demo, or random models of its size."""
    if results is not None:
        for name in ("sft", "reward", "preferences.parquet"):
            (folder / name).symlink_to((results / name).resolve())
        return
    import pandas as pd
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
        GPTNeoXForSequenceClassification,
        PreTrainedTokenizerFast,
    )

    special = ["<bos>", "<pad>", "<eos>", "<user>", "<bot>", "<unk>"]
    words = [f"w{k}" for k in range(160)]
    raw = Tokenizer(models.WordLevel({t: k for k, t in enumerate(special + words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", pad_token="<pad>", eos_token="<eos>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<user> ' if m['role'] == 'user' else '<bot> ' }}{{ m['content'] + ' ' }}"
        "{{ eos_token if m['role'] == 'assistant' }}{% endfor %}{{ '<bot> ' if add_generation_prompt }}"
    )
    config = GPTNeoXConfig(
        vocab_size=len(special + words), hidden_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_labels=1, intermediate_size=384, max_position_embeddings=128, rotary_pct=0.5,
        bos_token_id=0, pad_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    for name, kind in (("sft", GPTNeoXForCausalLM), ("reward", GPTNeoXForSequenceClassification)):
        model = kind(config)
        if name == "sft":  # EOS after about 20 tokens, as in the demo's answers
            model.gpt_neox.final_layer_norm.bias.data[0] = 1.0
            model.lm_head.weight.data[config.eos_token_id, 0] += math.log(len(words) / 52)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    lengths = torch.randint(6, 20, (512,)).tolist()
    contents = [" ".join(words[i] for i in torch.randint(0, 160, (n,)).tolist()) for n in lengths]
    prompts = [[{"role": "user", "content": content}] for content in contents]
    pd.DataFrame({"id": [str(k) for k in range(512)], "prompt": prompts}).to_parquet(folder / "preferences.parquet")


def run_ours(folder: Path, updates: int) -> dict[str, float]:
    import pandas as pd
    from po_dynamics.data.tokens.tokenising import tokenise
    from po_dynamics.objectives.registry import bind
    from po_dynamics.ppo import train

    wall: list[float] = []
    cpu: list[float] = []
    record = train.Run.record

    def clocked(self: train.Run, step: int, metrics: Any) -> None:
        wall.append(time.perf_counter())
        cpu.append(time.process_time())
        record(self, step, metrics)

    train.Run.record = clocked  # type: ignore[method-assign]
    settings = {
        "max_steps": updates, "batch_size": BATCH, "micro_batch_size": BATCH, "epochs": EPOCHS, "mini_batches": 1,
        "learning_rate": 1e-6, "max_prompt_length": 64, "max_new_tokens": NEW_TOKENS, "temperature": TEMPERATURE,
        "missing_eos_penalty": 1.0, "save_every": 10 * updates, "checkpoints": [0],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        output, log, state = (Path(temporary) / name for name in ("checkpoints", "training.csv", "state"))
        prompts = Path(temporary) / "prompts.arrow"
        tokenise(
            folder / "sft", folder / "preferences.parquet", "eval_prompts", prompts, special_tokens=True, parallel=False
        )
        paths = (folder / "sft", folder / "reward", prompts, output, log, state)
        train.train_online(*paths, objective=bind("ppo", {"epsilon": 0.2}), settings=settings, seed=0)
        table = pd.read_csv(log).iloc[1:]
    speeds = [BATCH / (later - earlier) for earlier, later in pairwise(wall)]
    per_cpu_second = [BATCH / (later - earlier) for earlier, later in pairwise(cpu)]
    return summary(speeds, per_cpu_second, float(table["response_length"].mean()))


def run_trl(folder: Path, updates: int) -> dict[str, float]:
    import os

    os.environ |= {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
    import torch
    import trl
    from transformers import TrainerCallback
    from trl.experimental.ppo import ppo_trainer

    if f"trl=={trl.__version__}" != TRL:
        sys.exit(f"expected {TRL}, found {trl.__version__}")
    ends, cpu, lengths = [], [], []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())
            cpu.append(time.process_time())

    original = ppo_trainer.truncate_response

    def counted(stop: int, pad: int, responses: torch.Tensor) -> torch.Tensor:
        cut = original(stop, pad, responses)
        lengths.append(float((cut != pad).sum(1).float().mean()))
        return cut

    ppo_trainer.truncate_response = counted
    with tempfile.TemporaryDirectory() as output:
        trl_trainer(folder, updates, output, Clock()).train()
    speeds = [BATCH / (later - earlier) for earlier, later in pairwise(ends)]
    return summary(
        speeds, [BATCH / (later - earlier) for earlier, later in pairwise(cpu)], statistics.mean(lengths[1:])
    )


def trl_trainer(folder: Path, updates: int, output: str, callback: Any) -> Any:
    """TRL's PPOTrainer on the models and prompts of `folder`, with the settings of `run_ours`."""
    import pandas as pd
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder / "sft", padding_side="left")
    prompts = pd.read_parquet(folder / "preferences.parquet")["prompt"]
    ids = [
        tokenizer.apply_chat_template(list(map(dict, p)), add_generation_prompt=True, return_dict=False)
        for p in prompts
    ]
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder / "sft") for _ in range(2))
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(folder / "reward", num_labels=1) for _ in range(2)
    )
    policy.generation_config.eos_token_id = tokenizer.eos_token_id
    arguments = PPOConfig(
        output_dir=output, per_device_train_batch_size=BATCH, gradient_accumulation_steps=1, num_mini_batches=1,
        num_ppo_epochs=EPOCHS, total_episodes=BATCH * updates, response_length=NEW_TOKENS, stop_token="eos",
        temperature=TEMPERATURE, missing_eos_penalty=1.0, learning_rate=1e-6,
        local_rollout_forward_batch_size=BATCH,
        num_sample_generations=0, bf16=False, save_strategy="no", report_to=[], disable_tqdm=True,
    )  # fmt: skip
    models: dict[str, PreTrainedModel] = {
        "model": policy, "ref_model": reference, "reward_model": reward, "value_model": value
    }  # fmt: skip
    data = Dataset.from_dict({"input_ids": ids})
    return PPOTrainer(args=arguments, processing_class=tokenizer, train_dataset=data, callbacks=[callback], **models)


def summary(speeds: list[float], per_cpu_second: list[float], length: float) -> dict[str, float]:
    """Medians over the updates; CPU seconds tell more than wall time where other jobs share the machine."""
    return {
        "episodes_per_second": statistics.median(speeds),
        "episodes_per_cpu_second": statistics.median(per_cpu_second),
        "response_length": length,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def report(results: dict[str, list[dict[str, float]]]) -> None:
    columns = {
        "episodes_per_second": "episodes/s",
        "episodes_per_cpu_second": "episodes/CPU s",
        "response_length": "tokens/response",
        "peak_rss_mib": "peak RSS, MiB",
    }
    print(" " * 6 + "".join(f"{title:>26}" for title in columns.values()))
    middle: dict[str, dict[str, float]] = {}
    for name, rounds in results.items():
        cells = {key: [one[key] for one in rounds] for key in columns}
        middle[name] = {key: statistics.median(values) for key, values in cells.items()}
        texts = [f"{middle[name][key]:.1f} ({min(v):.1f}–{max(v):.1f})" for key, v in cells.items()]
        print(f"{name:6}" + "".join(f"{text:>26}" for text in texts))
    for key in ("episodes_per_second", "episodes_per_cpu_second"):
        ratio = middle["ours"][key] / middle["trl"][key]
        print(f"{columns[key]} ratio {ratio:.2f} (target {TARGET}): {'reached' if ratio >= TARGET else 'missed'}")


WORKERS = {"ours": run_ours, "trl": run_trl}

if __name__ == "__main__":
    main()

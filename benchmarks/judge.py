"""Judging speed: the gold judge through the whole package, and a remote judge against what its latency allows.

    python benchmarks/judge.py [--prompts 805] [--latency 0.5] [--connections 32]

Gold: annotations a second, both orders, of responses of the embedded world, and whether they are those of rewards
compared directly. Remote: a server on loopback answers after `latency` seconds; the ideal is prompts / connections
latencies. The client runs in a process of its own, as a job does; its imports are not counted, its ledger is.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/helpers"))

CLIENT = """
import sys, time
from po_dynamics.judging import ledger, remote
from po_dynamics.settings.judging.calls import Calls
from po_dynamics.settings.judging.directory import find_judge
count, connections, url, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
calls = Calls.of({"endpoint": url, "connections": connections})
judge = find_judge("openai", calls)
prompts = [judge.template.replace("{instruction}", f"Question {i}").replace("{output_1}", "a" * 800)
           .replace("{output_2}", "b" * 700) for i in range(count)]
from pathlib import Path
with ledger.Ledger(Path(folder) / "mine.jsonl") as book:
    answers = remote.answering(judge, calls, book)
    for _ in range(2):
        began = time.monotonic()
        found = answers(prompts)["completions"]
        assert found == ["m"] * count
        print(time.monotonic() - began)
"""


def remote(count: int, latency: float, connections: int) -> None:
    """Seconds for all prompts, and for the same again."""
    from judge_server import JudgeServer

    with JudgeServer(latency=latency) as server, tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", CLIENT, str(count), str(connections), server.url, folder]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        first, again = map(float, done.stdout.split())
        requests = sum(server.asked.values())
    ideal = count / connections * latency
    print(
        f"remote: {count} prompts at {latency} s over {connections} connections: {first:.1f} s, "
        f"{first / ideal:.2f} × the ideal {ideal:.1f} s; again {again:.2f} s, {requests - count} requests"
    )


def gold(count: int) -> None:
    """Annotations a second of `judge_responses`, without alpaca-eval's import, and their largest error."""
    from po_dynamics.evaluation.alpaca import alpaca_eval
    from po_dynamics.evaluation.judge import judge_responses
    from po_dynamics.world.gold import gold_reward

    with tempfile.TemporaryDirectory() as folder, alpaca_eval():
        tables = responses(count, Path(folder) / "world")
        judged = Path(folder) / "judged"
        judged.mkdir()
        paths = [judged / f"{name}.parquet" for name in ("candidate", "baseline", "annotations")]
        for table, path in zip(tables, paths, strict=False):
            table.to_parquet(path)
        began = time.monotonic()
        found = judge_responses(*paths, "gold")
        seconds = time.monotonic() - began
        left = len(list(judged.iterdir())) - len(paths)
    rewards = [[gold_reward(row.instruction, row.response) for row in table.itertuples()] for table in tables]
    expected = [0.5 + 0.5 * ((a > b) - (a < b)) for a, b in zip(*rewards, strict=True)]
    error = max((found[column] - pd.Series(expected)).abs().max() for column in ("preference", "preference_swapped"))
    print(
        f"gold: {len(found)} prompts, {2 * len(found) / seconds:.0f} annotations a second, largest error {error:g}, "
        f"{left} files left behind"
    )


def responses(count: int, folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both answers of the world's preference pairs, as two tables of responses to `count` distinct prompts."""
    from po_dynamics.world.datasets import write_world_data

    sizes = {"pretraining": 10, "sft": 10, "final_prompts": 10, "eval_prompts": 10}
    write_world_data(folder, {"source": "world", "preferences": 8 * count, **sizes})
    pairs = pd.read_parquet(folder / "preferences.parquet")
    table = pd.DataFrame(
        {name: [cell[-1]["content"] for cell in pairs[name]] for name in ("prompt", "chosen", "rejected")}
    )
    table = table.drop_duplicates("prompt").head(count).reset_index(drop=True)
    about = {"step": 0, "id": table.index.map("p{}".format), "instruction": table["prompt"], "ended": True}
    chosen, rejected = (pd.DataFrame({**about, "response": table[name]}) for name in ("chosen", "rejected"))
    return chosen, rejected


def main() -> None:
    """Both, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=805)
    parser.add_argument("--latency", type=float, default=0.5)
    parser.add_argument("--connections", type=int, default=32)
    arguments = parser.parse_args()
    gold(arguments.prompts)
    remote(arguments.prompts, arguments.latency, arguments.connections)


if __name__ == "__main__":
    main()

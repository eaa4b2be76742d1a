"""What can be found out about a judge before anything is trained: by one question, or by looking at its model."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from po_dynamics.errors import InputError
from po_dynamics.evaluation import alpaca
from po_dynamics.judging.estimate import CHARACTERS, describe, estimate, reply_limit
from po_dynamics.settings.judging.calls import Calls
from po_dynamics.settings.judging.directory import Judge, find_judge
from po_dynamics.storage.atomic import write_json

# Whoever judges at all prefers the second answer; what is checked is that there is a verdict.
EXAMPLE = ("What is the capital of France?", "I like trains.", "Paris.")


def examine_judge(
    judge: Judge, calls: Calls, prompts: Path, asked: int, max_new_tokens: int, output: Path
) -> dict[str, Any]:
    """Asks a remote judge one question; looks at the model of one in this process; estimates what judging will cost.

    Args:
        judge: of `find_judge`.
        calls: how it is asked.
        prompts: `eval_prompts.parquet`.
        asked: how often each prompt is asked: of every model that will be judged, in every order.
        max_new_tokens: of a response, for the estimate, which is an upper bound.
        output: a record of what was found, JSON, written atomically.

    Raises:
        InputError: key, model or endpoint are wrong, or the answer holds no verdict.
    """
    about = question(judge, calls)
    if judge.remote:
        about["estimate"] = _estimate(judge, calls, _texts(prompts), asked, max_new_tokens, about)
    write_json(output, about)
    return about


def question(judge: Judge, calls: Calls) -> dict[str, Any]:
    """Asks a remote judge once, looks at the model of one in this process; what was found.

    Raises:
        InputError: key, model or endpoint are wrong, or the answer holds no verdict.
    """
    alpaca.function(judge.function)
    about: dict[str, Any] = {"judge": judge.name, "digest": judge.digest}
    if judge.remote or judge.in_process:
        # By name, as the judge names its function: no other judge's verdicts go stale with this one's module.
        check = alpaca.function(f"{judge.function.partition(':')[0]}:check")
        found, columns = check(judge, calls, _prompt(judge))
        about |= found
        if columns is not None:
            _require_verdict(judge, found, columns)
    return about


def _require_verdict(judge: Judge, about: Mapping[str, Any], columns: Mapping[str, Any]) -> None:
    key = str(judge.annotator.get("completion_key", "completions"))
    try:
        (verdict,) = alpaca.parser(judge.annotator)(columns[key])
    except InputError:
        raise
    except Exception:  # parsers of alpaca-eval raise whatever they stumble upon
        verdict = None
    if verdict is None or not math.isfinite(float(verdict)):
        raise InputError(f"judge {about['model']} at {about['endpoint']}: {_why(judge, columns)}")


def _why(judge: Judge, columns: Mapping[str, Any]) -> str:
    """Why an answer holds no verdict."""
    reply = f"it replied {columns['completions'][:80]!r}"
    if judge.parameters.get("logprobs") and "logprobs" not in columns["completions_all"]:
        return f"{reply} without log-probs, which judge '{judge.name}' needs; take openai_text, which reads the reply"
    return f"{reply}, which judge '{judge.name}' cannot read; is this model one that thinks before it answers?"


def _prompt(judge: Judge) -> str:
    instruction, *outputs = EXAMPLE
    if judge.encoding == "json":
        instruction, outputs = json.dumps(instruction), [json.dumps([text, True]) for text in outputs]
    return alpaca.fill(judge.template, {"instruction": instruction, "output_1": outputs[0], "output_2": outputs[1]})


def _texts(prompts: Path) -> list[str]:
    questions = pd.read_parquet(prompts, columns=["prompt"])["prompt"]
    return ["".join(message["content"] for message in messages) for messages in questions]


def _estimate(
    judge: Judge, calls: Calls, texts: Sequence[str], asked: int, max_new_tokens: int, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Of every prompt as often as it is asked, with answers of full length."""
    length = len(judge.template) + 2 * int(CHARACTERS * max_new_tokens)
    sizes = [length + len(text) for text in texts] * asked
    price = calls.prices.get(about["model"])
    found = estimate(sizes, reply_limit(judge.parameters), price, about["seconds_per_call"], calls.connections)
    print(f"the whole experiment, at most: {describe(found)}", file=sys.stderr, flush=True)
    if calls.max_usd is not None and (found.usd or 0) > calls.max_usd:
        print(f"that may exceed evaluation.judging.max_usd = {calls.max_usd:g}", file=sys.stderr, flush=True)
    return found._asdict()


def main() -> None:
    """Examines the judge of the section `evaluation` of a configuration, which is read as JSON from standard input."""
    evaluation = json.load(sys.stdin)
    calls = Calls.of(evaluation["judging"], "evaluation.judging")
    try:
        judge = find_judge(evaluation["judge"], calls)
        needed = ("torch", "transformers") if judge.in_process else ("openai", "tenacity", "alpaca_eval")
        if absent := [name for name in needed if importlib.util.find_spec(name) is None]:
            print(f"judge: not asked before the start: {', '.join(absent)} not installed here", file=sys.stderr)
            return  # judging has an environment of its own, and so has the rule examine_judge
        about = question(judge, calls)
    except InputError as error:
        sys.exit(f"error: {error}")
    print(f"judge: {json.dumps(about)}", file=sys.stderr)


if __name__ == "__main__":
    main()

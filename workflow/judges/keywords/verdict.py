"""A local judge: the answer wins that has more of the question's words, for its length. Put your own in its place."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any


def completions(prompts: Sequence[str], **_: Any) -> dict[str, list[str]]:
    """Verdicts as alpaca-eval's completion functions return them; a prompt is what template.txt makes.

    `preference` is 1 for the first answer, 2 for the second, 1.5 for a tie.
    """
    return {"completions": [json.dumps({"preference": preference(*json.loads(prompt))}) for prompt in prompts]}


def preference(instruction: str, first: Sequence[Any], second: Sequence[Any]) -> float:
    """1, 1.5 or 2; an answer is its text and whether it ended."""
    scores = [score(instruction, text) for text, _ in (first, second)]
    return 1.5 + 0.5 * ((scores[1] > scores[0]) - (scores[1] < scores[0]))


def score(instruction: str, answer: str) -> float:
    """How many of the question's words the answer has, over the square root of the number of its own."""
    asked, said = (re.findall(r"\w+", text.lower()) for text in (instruction, answer))
    return len({*asked} & {*said}) / math.sqrt(len(said) + 1)

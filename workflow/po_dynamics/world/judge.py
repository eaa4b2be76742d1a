"""The embedded world's judge, as `workflow/judges/gold/configs.yaml` names it: the higher gold reward wins."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

from po_dynamics.world.gold import gold_reward


def gold_completions(prompts: Sequence[str], **_: Any) -> dict[str, list[str]]:
    """Verdicts of the gold reward, as alpaca-eval's completion functions return them.

    A prompt is the JSON list `[instruction, [response, ended], [response, ended]]`. `preference` is 1 when the first
    response has the higher reward, 2 when the second has, 1.5 on a tie; the rewards are given for an audit.
    """
    reward = functools.cache(lambda instruction, response, ended: gold_reward(instruction, response, ended=ended))
    completions = []
    for prompt in prompts:
        instruction, first, second = json.loads(prompt)
        rewards = reward(instruction, *first), reward(instruction, *second)
        preference = 1.5 + 0.5 * ((rewards[1] > rewards[0]) - (rewards[1] < rewards[0]))
        # An object, not a bare number: alpaca-eval's JSON cache would read "1" back as a number and misparse it.
        completions.append(json.dumps({"preference": preference, "rewards": rewards}))
    return {"completions": completions}

"""The gold judge with stated faults, which `workflow/judges/noisy_gold/configs.yaml` names: to test what finds them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit, logit

from po_dynamics.world.judge import gold_completions

LENGTH_UNIT = 60.0  # characters; tanh of the difference in this unit is what length is worth


def noisy_gold_completions(
    prompts: Sequence[str],
    *,
    error: float,
    position: float = 0.0,
    length: float = 0.0,
    probabilities: bool = False,
    seed: int = 0,
    **_: Any,
) -> dict[str, list[str]]:
    """Verdicts of a judge that errs, likes a place and likes length; prompts as of `gold_completions`.

    P(second is better) = σ(±logit(1 − error) − position + length · tanh(Δ / LENGTH_UNIT)), + where the second has the
    higher reward, − where the first has, 0 on a tie; Δ is the second's characters beyond the first's.

    Args:
        error: in [0, 0.5], share of wrong verdicts on pairs that are no tie, without the two biases.
        position: log-odds in favour of the answer shown first.
        length: log-odds in favour of an answer that is much longer.
        probabilities: give P itself, not a verdict drawn with it.
        seed: of the draws, which depend on it and on the prompt alone; another seed is another sitting of the judge.
    """
    gold_N = np.array([json.loads(reply)["preference"] for reply in gold_completions(prompts)["completions"]])
    shown = [json.loads(prompt) for prompt in prompts]
    longer_N = np.array([len(second[0]) - len(first[0]) for _, first, second in shown], dtype=float)
    side_N = np.sign(gold_N - 1.5)
    bias_N = length * np.tanh(longer_N / LENGTH_UNIT) - position
    chance_N = np.where(side_N == 0, expit(bias_N), expit(side_N * logit(1 - error) + bias_N))
    if not probabilities:
        chance_N = np.array([_uniform(prompt, seed) for prompt in prompts]) < chance_N
    return {"completions": [json.dumps({"preference": 1 + float(chance)}) for chance in chance_N]}


def _uniform(prompt: str, seed: int) -> float:
    """In [0, 1), the same for the same prompt and seed."""
    return int.from_bytes(hashlib.sha256(f"{seed} {prompt}".encode()).digest()[:7]) / 2**56

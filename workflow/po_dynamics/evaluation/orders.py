"""In which order the two answers of a pair are shown to a judge."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd


def asked_in(order: str, instructions: Sequence[str]) -> np.ndarray:
    """(2, N): whether a pair is asked about with the candidate second, and with the candidate first.

    Args:
        order: "both", or "random" for one order per instruction, the one that alpaca-eval draws.
        instructions: of the pairs.
    """
    if order == "both":
        return np.ones((2, len(instructions)), dtype=bool)
    first_N = np.array([candidate_first(instruction) for instruction in instructions], dtype=bool)
    return np.stack([~first_N, first_N])


def candidate_first(instruction: str, seed: int = 0) -> bool:
    """Whether alpaca-eval with this seed (of its annotator) shows the candidate, its `output_2`, first.

    The same for every candidate. `random.choices` with the string as seed is what its
    `RandomSwitchTwoColumnsProcessor` does.
    """
    return random.Random(f"is_switched_outputs{instruction}{seed}").choices([False, True])[0]


def where(asked_N: np.ndarray, pairs: pd.DataFrame, ask: Callable[[pd.DataFrame], np.ndarray]) -> np.ndarray:
    """(N,): what `ask` says of the pairs that are to be asked about, NaN for the others."""
    answers_N = np.full(len(pairs), np.nan)
    if asked_N.any():
        answers_N[asked_N] = ask(pairs[asked_N])
    return answers_N

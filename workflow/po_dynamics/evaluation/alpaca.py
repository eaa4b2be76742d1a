"""alpaca-eval 0.6.6, which is no longer maintained, without the faults that we know; `judge` asks through it."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import random
import re
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd

from po_dynamics.errors import InputError
from po_dynamics.judging.prompts import without_turns

Completions = Callable[..., dict[str, list[Any]]]


@contextmanager
def alpaca_eval() -> Iterator[types.ModuleType]:
    """alpaca-eval 0.6.6 without `pkg_resources`, without the Hub and without its grip on the root logger."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("USER", "nobody")  # it asks for the user's name, which a container may not have
    _provide_pkg_resources()
    warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)
    root = logging.getLogger()
    level = root.level
    try:
        import alpaca_eval

        root.setLevel(max(level, logging.CRITICAL))  # it sets INFO, and logs every reply without verdict as a fault
        yield alpaca_eval
    finally:
        root.setLevel(level)


def _provide_pkg_resources() -> None:
    """alpaca-eval asks `pkg_resources` for versions; setuptools 82 removed it. This is all that it uses."""
    if "pkg_resources" in sys.modules or importlib.util.find_spec("pkg_resources") is not None:
        return
    from importlib.metadata import version

    from packaging.version import parse

    stand_in: Any = types.ModuleType("pkg_resources")
    stand_in.parse_version = parse
    stand_in.get_distribution = lambda name: types.SimpleNamespace(version=version(name))
    sys.modules["pkg_resources"] = stand_in


def annotator_class(completions: Completions) -> type:
    """alpaca-eval's pairwise annotator without its known faults, which asks `completions`, prompts to columns.

    Built late, because the import takes seconds.
    """
    from alpaca_eval.annotators import PairwiseAnnotator

    class Annotator(PairwiseAnnotator):
        SingleAnnotator = _single_class(completions)
        # Seeds the choice among several annotators, of which there is one here. The original, a list of columns, takes
        # nine tenths of the time of a fast judge.
        random_seed_keys = "instruction"

    return Annotator


def _single_class(completions: Completions) -> type:
    """The part of the annotator that writes the prompts and asks."""
    from alpaca_eval.annotators.pairwise_evaluator import SinglePairwiseAnnotator

    class Single(SinglePairwiseAnnotator):
        def __init__(self, **config: Any) -> None:
            asked = {"fn_completions": completions, "completions_kwargs": {}}  # which has its parameters
            config.pop("po_dynamics", None)
            super().__init__(**{**config, **asked, "is_randomize_output_order": False})  # we ask for both orders

        def _make_prompts(self, df_to_annotate: pd.DataFrame, prompt_template: str | None = None) -> tuple[list, Any]:
            if self.batch_size != 1:
                return super()._make_prompts(df_to_annotate, prompt_template)
            template, rows = prompt_template or self.prompt_template, df_to_annotate.to_dict("records")
            return [fill(template, row) for row in rows], df_to_annotate

    return Single


def function(name: str) -> Callable[..., Any]:
    """What `fn_completions` names: a "module:function", or a decoder of alpaca-eval."""
    module, _, attribute = name.partition(":")
    try:
        if attribute:
            return getattr(importlib.import_module(module), attribute)
        with alpaca_eval() as package:
            return importlib.import_module(f"{package.__name__}.decoders").get_fn_completions(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"judge: fn_completions is '{name}', which cannot be imported: {error}") from None


# ----------------------------------------------------------------------------------------- the order of the two answers


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


def parser(annotator: Mapping[str, Any]) -> Callable[[Any], list[Any]]:
    """The parser that an annotator's configuration names: what `completion_key` holds to a list of one preference."""
    with alpaca_eval() as package:
        parsers = importlib.import_module(f"{package.__name__}.completion_parsers")
    name = str(annotator.get("fn_completion_parser"))
    if not hasattr(parsers, name):
        raise InputError(f"judge: fn_completion_parser is '{name}', which alpaca-eval does not have")
    return functools.partial(getattr(parsers, name), **(annotator.get("completion_parser_kwargs") or {}))


def fill(template: str, row: Mapping[Any, Any]) -> str:
    """A prompt: the template with the cells of `row` in the place of the keys in braces, in one pass.

    alpaca-eval itself would fill in the "{output_1}" of an instruction that happens to contain it.
    """
    shown = without_turns if "<|im_start|>" in template else str
    return re.sub(r"{([^ \s]+?)}", lambda match: shown(str(row[match[1]])), template)

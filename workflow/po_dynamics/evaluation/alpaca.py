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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from po_dynamics.errors import InputError
from po_dynamics.storage.atomic import atomic_file


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

        root.setLevel(max(level, logging.ERROR))  # it sets INFO on import and reports every chunk
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


@functools.cache
def annotator_class() -> type:
    """alpaca-eval's pairwise annotator without its known faults; built late because the import takes seconds."""
    from alpaca_eval.annotators import PairwiseAnnotator

    class Annotator(PairwiseAnnotator):
        SingleAnnotator = _single_class()
        # Seeds the choice among several annotators, of which there is one here. The original, a list of columns, takes
        # nine tenths of the time of a fast judge.
        random_seed_keys = "instruction"
        df_annotations: pd.DataFrame | None

        def _apply_cached_annotations(self, df_to_annotate: pd.DataFrame) -> pd.DataFrame:
            # The original fails on an empty cache when missing annotations are not stored.
            return df_to_annotate if self.df_annotations is None else super()._apply_cached_annotations(df_to_annotate)

        def load_(self, path: Path | None = None) -> None:
            try:
                super().load_(path)
            except ValueError as error:
                raise InputError(f"judge cache {path or self.caching_path}: {error}; delete it") from None
            if (table := self.df_annotations) is not None:  # all whole numbers come back as integers, none as nothing
                self.df_annotations = None if table.empty else table.astype({self.annotation_key: float})

        def save(self, path: Path | None = None) -> None:
            # The original writes onto the file itself: a kill leaves a cache that cannot be read.
            if (target := path or self.caching_path) is not None:
                with atomic_file(target) as temporary:
                    super().save(temporary)

    return Annotator


def _single_class() -> type:
    """The part of the annotator that writes the prompts and asks."""
    from alpaca_eval.annotators.pairwise_evaluator import SinglePairwiseAnnotator

    class Single(SinglePairwiseAnnotator):
        def __init__(self, **config: Any) -> None:
            config.pop("po_dynamics", None)
            if ":" in (name := str(config.get("fn_completions"))):
                config["fn_completions"] = _function(name)
            super().__init__(**{**config, "is_randomize_output_order": False})  # we ask for both orders

        def _make_prompts(self, df_to_annotate: pd.DataFrame, prompt_template: str | None = None) -> tuple[list, Any]:
            if self.batch_size != 1:
                return super()._make_prompts(df_to_annotate, prompt_template)
            # One pass: the original would fill in the "{output_1}" of an instruction that happens to contain it.
            template, rows = prompt_template or self.prompt_template, df_to_annotate.to_dict("records")
            return [re.sub(r"{([^ \s]+?)}", lambda m, r=row: str(r[m[1]]), template) for row in rows], df_to_annotate

    return Single


def _function(name: str) -> Callable[..., dict[str, list[Any]]]:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
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

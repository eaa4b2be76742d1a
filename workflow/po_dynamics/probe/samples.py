"""The frozen samples of a probe: D and D′ as token ids, in mini-batches, exactly as the model sees them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from po_dynamics.data.preferences import EncodedPair, Pairs, read_rewards
from po_dynamics.dynamics.coefficients import PAIR_ROLES
from po_dynamics.dynamics.tables import COLUMNS
from po_dynamics.errors import InputError
from po_dynamics.storage.parquet import read_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from po_dynamics.ppo.probe_rollouts import RolloutSample

Array = np.ndarray


@dataclass(frozen=True)
class Sample:
    """One response; arrays have an entry per response token: reference log-probs (nats), advantages."""

    sample_id: str  # a pair shares it
    set: str  # train: D | final: D′
    batch: int  # of its mini-batch
    role: str  # chosen | rejected | rollout | final
    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    ref_logps: Array | None = None
    advantages: Array | None = None
    raw_advantages: Array | None = None
    reward: float | None = None  # of the response, where the objective needs it

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


def choose(count: int, n: int, seed: int, what: str) -> list[int]:
    """n of `count` rows without replacement, in the order of their mini-batches; all rows, and a note, if n is more."""
    if n > count:
        print(f"{what}: {n} samples are asked for, {count} are there: all are taken", file=sys.stderr)
    return [int(i) for i in np.random.default_rng(seed).permutation(count)[:n]]


def pair_samples(
    pairs: Sequence[EncodedPair], batch_size: int, rewards: Sequence[tuple[float, float]] | None = None
) -> list[Sample]:
    """D of an offline objective: mini-batches of `batch_size` pairs, in the order given, with the pairs' rewards."""
    of_pairs: Sequence[tuple[float | None, float | None]] = rewards or [(None, None)] * len(pairs)
    return [
        Sample(pair.id, "train", i // batch_size, role, pair.prompt_ids, ids, reward=reward)
        for i, (pair, both) in enumerate(zip(pairs, of_pairs, strict=True))
        for role, ids, reward in zip(PAIR_ROLES, (pair.chosen_ids, pair.rejected_ids), both, strict=True)
    ]


def rollout_samples(rollouts: Sequence[RolloutSample], batch_size: int) -> list[Sample]:
    """D of an online objective: mini-batches of `batch_size` roll-outs, with advantages and reference log-probs."""
    return [
        Sample(
            f"{i}:{rollout.id}",
            "train",
            i // batch_size,
            "rollout",
            rollout.prompt_ids,
            rollout.response_ids,
            np.asarray(rollout.ref_logps_R),
            np.asarray(rollout.advantages_R),
            np.asarray(rollout.raw_advantages_R),
        )
        for i, rollout in enumerate(rollouts)
    ]


def final_samples(responses: Sequence[tuple[Sequence[int], Sequence[int]]], batch_size: int) -> list[Sample]:
    """D′ from (prompt ids, response ids): mini-batches of `batch_size` responses, in the order given."""
    return [
        Sample(str(i), "final", i // batch_size, "final", prompt, response)
        for i, (prompt, response) in enumerate(responses)
    ]


def read_pairs(
    path: Path,
    n: int,
    seed: int,
    batch_size: int,
    max_length: int,
    rewards: Path | None = None,
) -> list[Sample]:
    """n preference pairs, the tokens of training, with their rewards where a table of them is given."""
    pairs = Pairs(path, max_length)
    chosen = [pairs[i] for i in choose(len(pairs), n, seed, str(path))]
    return pair_samples(chosen, batch_size, read_rewards(rewards, [pair.id for pair in chosen]) if rewards else None)


def read_final(
    path: Path, tokenizer: PreTrainedTokenizerBase, vocabulary: int, n: int, seed: int, batch_size: int
) -> list[Sample]:
    """n final responses; InputError where the text was not written by this tokenizer (a table of another model).

    `vocabulary` is the model's, which may be larger than the tokenizer's.
    """
    rows = read_rows(path, ["id", "prompt_ids", "response_ids", "response"])
    for row in rows:
        ids = row["response_ids"]
        if max([*row["prompt_ids"], *ids], default=0) >= vocabulary or not _spells(tokenizer, ids, row["response"]):
            raise InputError(
                f"{path}: the ids of response {row['id']!r} do not spell its text in this model's vocabulary; it is a "
                "table of another run: delete it and generate the final responses again"
            )
    chosen = [rows[i] for i in choose(len(rows), n, seed + 1, str(path))]
    samples = final_samples([(row["prompt_ids"], row["response_ids"]) for row in chosen], batch_size)
    return [replace(sample, sample_id=str(row["id"])) for sample, row in zip(samples, chosen, strict=True)]


def _spells(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str) -> bool:
    spelled = (str(tokenizer.decode(list(ids), skip_special_tokens=skip)) for skip in (True, False))
    return any("".join(candidate.split()) == "".join(text.split()) for candidate in spelled)


def check_samples(samples: Sequence[Sample], vocabulary: int, context: int | None) -> None:
    """InputError for no samples, empty texts, ids outside the vocabulary and texts longer than the context."""
    if not samples:
        raise InputError("probe: there is no sample; give D and D′ at least one response each")
    for sample in samples:
        name = f"the {sample.role} response of sample {sample.sample_id!r}"
        if not len(sample.response_ids) or not len(sample.prompt_ids):
            raise InputError(f"probe: {name} or its prompt is empty; drop the sample")
        top = max(max(sample.prompt_ids), max(sample.response_ids))
        if top >= vocabulary:
            raise InputError(
                f"probe: {name} has token id {top}, but the model's vocabulary has {vocabulary}: "
                "the samples were tokenised for another model"
            )
        if context is not None and sample.length > context:
            raise InputError(
                f"probe: {name} and its prompt have {sample.length} tokens, the model's context {context}: "
                "drop the sample or lower max_length"
            )


def samples_frame(samples: Sequence[Sample]) -> pd.DataFrame:
    """`samples.parquet`."""
    columns: dict[str, Any] = {name: [getattr(sample, name) for sample in samples] for name in COLUMNS["samples"]}
    for name in ("prompt_ids", "response_ids"):
        columns[name] = [np.asarray(ids, dtype=np.int32) for ids in columns[name]]
    return pd.DataFrame(columns)


def from_frame(frame: pd.DataFrame) -> list[Sample]:
    """Samples of a stored `samples.parquet`."""
    columns: Any = frame.to_dict("list")
    return [Sample(*row) for row in zip(*(columns[name] for name in COLUMNS["samples"]), strict=True)]

"""The embedded world's data sets in the common schema."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from po_dynamics.data.schema import COLUMNS, Row, write_rows
from po_dynamics.errors import InputError
from po_dynamics.settings.data import WorldData
from po_dynamics.storage.atomic import atomic_folder
from po_dynamics.storage.parquet import write_table
from po_dynamics.world.facts import draw_intent, write_prompt
from po_dynamics.world.gold import gold_reward, preference_probability
from po_dynamics.world.language import train_tokenizer, write_answer, write_documents

# Parameters of the Beta distributions from which the writers of SFT answers and of template pairs are drawn; see
# `language.write_answer`.
QUALITY, STYLE = (2.2, 1.6), (1.2, 1.4)


def write_world_data(output: Path, settings: Mapping[str, Any] | WorldData) -> None:
    """Writes the embedded world's data sets and tokenizer to the folder `output` (`settings`: config `data`).

    SFT, preferences, D′ and evaluation have disjoint combinations of family × animals × tone. D′ prompts begin
    with small talk; a quarter of the evaluation prompts say the tone first.
    """
    settings = WorldData.of(settings, "data")
    seed = settings.seed

    def rng(name: str) -> random.Random:
        return random.Random(f"{name}/{seed}")

    with atomic_folder(output) as folder:
        documents = list(write_documents(settings.pretraining, rng("pretraining")))
        write_table(pa.table({"text": documents}), folder / "pretraining.parquet")
        train_tokenizer(documents, folder / "tokenizer")
        rows = {
            "sft": _sft_rows(settings.sft, rng("sft")),
            "preferences": _preference_rows(settings.preferences, settings.label_temperature, rng("preferences")),
            "final_prompts": _prompt_rows(settings.final_prompts, "final", rng("final")),
            "eval_prompts": _prompt_rows(settings.eval_prompts, "eval", rng("eval")),
        }
        for name, columns in COLUMNS.items():
            write_rows(rows[name], folder / f"{name}.parquet", columns)


def user_message(text: str) -> list[dict[str, str]]:
    """A conversation of one message, of the user."""
    return [{"role": "user", "content": text}]


def assistant_message(text: str) -> list[dict[str, str]]:
    """A conversation of one message, of the assistant."""
    return [{"role": "assistant", "content": text}]


def _draw_answer(intent: Any, rng: random.Random) -> str:
    return write_answer(intent, rng.betavariate(*QUALITY), rng.betavariate(*STYLE), rng)


def _sft_rows(n: int, rng: random.Random) -> Iterator[Row]:
    for index in range(n):
        intent = draw_intent(rng, frozenset({"sft"}))
        prompt = write_prompt(intent, rng)
        yield {
            "id": f"sft-{index:05d}",
            "prompt": user_message(prompt),
            "completion": assistant_message(_draw_answer(intent, rng)),
        }


def _preference_rows(n: int, temperature: float, rng: random.Random) -> Iterator[Row]:
    for index in range(n):
        intent = draw_intent(rng, frozenset({"preferences"}))
        prompt = write_prompt(intent, rng)
        first = second = _draw_answer(intent, rng)
        while second == first:
            second = _draw_answer(intent, rng)
        yield labelled_pair(f"template-{index:05d}", prompt, (first, second), temperature, rng)


def labelled_pair(id_: str, prompt: str, answers: tuple[str, str], temperature: float, rng: random.Random) -> Row:
    """A preference pair, labelled by a Bradley–Terry draw from the gold reward."""
    rewards = [gold_reward(prompt, answer) for answer in answers]
    chosen, rejected = (
        answers if rng.random() < preference_probability(rewards[0], rewards[1], temperature) else answers[::-1]
    )
    return {
        "id": id_,
        "prompt": user_message(prompt),
        "chosen": assistant_message(chosen),
        "rejected": assistant_message(rejected),
    }


def _prompt_rows(n: int, split: str, rng: random.Random) -> Iterator[Row]:
    """Distinct prompts of a held-out split."""
    seen: set[str] = set()
    misses = 0
    while len(seen) < n:
        if misses == 50:
            raise InputError(f"data.{split}_prompts is {n}, but the world has only about {len(seen)}; ask for fewer")
        form = "chatty" if split == "final" else rng.choices(("standard", "reordered"), (0.75, 0.25))[0]
        prompt = write_prompt(draw_intent(rng, frozenset({split})), rng, form)
        misses = misses + 1 if prompt in seen else 0
        if not misses:
            seen.add(prompt)
            yield {"id": f"{split}-{len(seen) - 1:04d}", "prompt": user_message(prompt)}

"""The four data sets in one schema: from the embedded world, or from the hub (or local folders in its format).

docs/architecture.md lists the files and columns. Prompts and answers are lists of `{role, content}` messages.
"""

from __future__ import annotations

import math
import random
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from po_dynamics import sources
from po_dynamics.checkpointing import atomic_file, atomic_folder
from po_dynamics.errors import InputError
from po_dynamics.gold import gold_reward, preference_probability
from po_dynamics.language import train_tokenizer, write_answer, write_documents
from po_dynamics.world import draw_intent, write_prompt

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Row = dict[str, Any]

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
COLUMNS = {
    "sft": ("prompt", "completion"),
    "preferences": ("prompt", "chosen", "rejected"),
    "final_prompts": ("prompt",),
    "eval_prompts": ("prompt",),
}
# Of the SFT writers and of the template pairs (Beta distributions); see `language.write_answer`.
QUALITY, STYLE = (2.2, 1.6), (1.2, 1.4)


def load_table(path: Path | str, columns: Sequence[str]) -> Dataset:
    """The columns of a Parquet file as an in-memory `datasets.Dataset`.

    Raises:
        InputError: no such file, not Parquet, a column is missing, no rows.
    """
    from datasets import Dataset

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; run the stage that writes it")
    try:
        present = pq.read_schema(path).names
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is not a Parquet file ({' '.join(str(error).split())}); write it again") from None
    if missing := [column for column in columns if column not in present]:
        raise InputError(f"{path} has no column {', '.join(missing)} (columns present: {', '.join(present)})")
    table = pq.read_table(path, columns=list(columns))
    if not table.num_rows:
        raise InputError(f"{path} is an empty data set; it needs at least one row")
    return Dataset(table)


def _chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, size)):
        yield chunk


def check_lengths(
    rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, limit: int, key: str, path: Path | str
) -> None:
    """Raises InputError for the first row whose rendered prompt has more than `limit` tokens; `key` sets the limit."""
    for chunk in _chunks(rows, 1024):
        rendered = tokenizer.apply_chat_template(
            [row["prompt"] for row in chunk], add_generation_prompt=True, tokenize=False
        )
        for row, ids in zip(chunk, tokenizer(list(rendered), add_special_tokens=False)["input_ids"], strict=True):
            if len(ids) > limit:
                raise InputError(
                    f"{path}: the prompt of {row['id']} has {len(ids)} tokens, more than the {limit} of {key}; "
                    f"raise {key} or remove the row"
                )


def write_table(rows: Iterable[Row], path: Path, columns: Sequence[str]) -> int:
    """Writes `id` and columns of messages, in chunks; returns the number of rows."""
    schema = pa.schema([("id", pa.string()), *((column, _MESSAGES) for column in columns)])
    count = 0
    with pq.ParquetWriter(path, schema) as writer:
        for chunk in _chunks(rows, 4096):
            writer.write_table(pa.Table.from_pylist(chunk, schema))
            count += len(chunk)
    return count


def write_world_data(output: Path, settings: Mapping[str, Any]) -> None:
    """Writes the embedded world's data sets and tokenizer to the folder `output` (`settings`: config `data`).

    SFT, preferences, D′ and evaluation have disjoint combinations of family × animals × tone. D′ prompts begin
    with small talk; a quarter of the evaluation prompts say the tone first.
    """
    for key in ("pretraining", "sft", "preferences", "final_prompts", "eval_prompts"):
        if settings[key] < 1:
            raise InputError(f"data.{key} is {settings[key]}: an empty data set; it needs at least 1")
    seed = settings["seed"]

    def rng(name: str) -> random.Random:
        return random.Random(f"{name}/{seed}")

    with atomic_folder(output) as folder:
        documents = list(write_documents(settings["pretraining"], rng("pretraining")))
        pq.write_table(pa.table({"text": documents}), folder / "pretraining.parquet")
        train_tokenizer(documents, folder / "tokenizer")
        rows = {
            "sft": _sft_rows(settings["sft"], rng("sft")),
            "preferences": _preference_rows(settings["preferences"], settings["label_temperature"], rng("preferences")),
            "final_prompts": _prompt_rows(settings["final_prompts"], "final", rng("final")),
            "eval_prompts": _prompt_rows(settings["eval_prompts"], "eval", rng("eval")),
        }
        for name, columns in COLUMNS.items():
            write_table(rows[name], folder / f"{name}.parquet", columns)


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _draw_answer(intent: Any, rng: random.Random) -> str:
    return write_answer(intent, rng.betavariate(*QUALITY), rng.betavariate(*STYLE), rng)


def _sft_rows(n: int, rng: random.Random) -> Iterator[Row]:
    for index in range(n):
        intent = draw_intent(rng, frozenset({"sft"}))
        prompt = write_prompt(intent, rng)
        yield {"id": f"sft-{index:05d}", "prompt": _user(prompt), "completion": _assistant(_draw_answer(intent, rng))}


def _preference_rows(n: int, temperature: float, rng: random.Random) -> Iterator[Row]:
    for index in range(n):
        intent = draw_intent(rng, frozenset({"preferences"}))
        prompt = write_prompt(intent, rng)
        first = second = _draw_answer(intent, rng)
        while second == first:
            second = _draw_answer(intent, rng)
        yield _pair(f"template-{index:05d}", prompt, (first, second), temperature, rng)


def _pair(id_: str, prompt: str, answers: tuple[str, str], temperature: float, rng: random.Random) -> Row:
    """A preference pair, labelled by a Bradley–Terry draw from the gold reward."""
    rewards = [gold_reward(prompt, answer) for answer in answers]
    chosen, rejected = (
        answers if rng.random() < preference_probability(rewards[0], rewards[1], temperature) else answers[::-1]
    )
    return {"id": id_, "prompt": _user(prompt), "chosen": _assistant(chosen), "rejected": _assistant(rejected)}


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
            yield {"id": f"{split}-{len(seen) - 1:04d}", "prompt": _user(prompt)}


_CONVERTERS: dict[str, tuple[tuple[tuple[str, ...], ...], Callable[[Row], Row | None]]] = {
    "sft": ((("prompt", "completion"), ("messages",)), sources.sft_row),
    "preferences": ((("chosen", "rejected"),), sources.preference_row),
    "final_prompts": ((("instruction",), ("prompt",), ("messages",), ("chosen",)), sources.prompt_row),
    "eval_prompts": ((("instruction",), ("prompt",), ("messages",), ("chosen",)), sources.prompt_row),
}


def download_data(output: Path, settings: Mapping[str, Any]) -> None:
    """Writes the four data sets of `settings` (config `data`, source hub) to the folder `output`.

    `limit` of a data set keeps that many rows, drawn with `seed`. Unusable rows (equal or empty answers, no question, a
    prompt above `max_prompt_characters`) are left out and counted on standard error. Prompts of D′ and of the judge are
    kept once each.

    Raises:
        InputError: a data set that cannot be loaded, lacks its columns, has another SHA-256 or no usable row.
    """
    with atomic_folder(output) as folder:
        for name, columns in COLUMNS.items():
            source = settings[name]
            data = sources.load_source(source, f"data.{name}")
            schemas, convert = _CONVERTERS[name]
            _require_columns(data.column_names, schemas, f"data.{name}: {source['path']}")
            indices: Sequence[int] = range(len(data))
            if source.get("limit") and source["limit"] < len(data):
                indices = sorted(random.Random(f"{name}/{settings['seed']}").sample(indices, source["limit"]))
            longest = source.get("max_prompt_characters", math.inf)
            rows = (row for row in _converted(data, indices, name, convert) if _characters(row["prompt"]) <= longest)
            count = write_table(rows, folder / f"{name}.parquet", columns)
            if not count:
                raise InputError(f"data.{name}: {source['path']} has no usable row")
            print(f"data.{name}: {count} of {len(indices)} rows of {source['path']} are usable", file=sys.stderr)


def _characters(messages: Sequence[Mapping[str, str]]) -> int:
    return sum(len(message["content"]) for message in messages)


def _require_columns(present: Sequence[str], schemas: Sequence[Sequence[str]], what: str) -> None:
    if not any(set(schema) <= set(present) for schema in schemas):
        wanted = " or ".join(" and ".join(schema) for schema in schemas)
        raise InputError(f"{what} has no column {wanted} (columns present: {', '.join(present)})")


def _converted(data: Any, indices: Iterable[int], name: str, convert: Callable[[Row], Row | None]) -> Iterator[Row]:
    """Usable rows in the common schema, with ids that name the row of the source."""
    seen: set[str] = set()
    for index in tqdm(indices, desc=f"data.{name}", unit="row", mininterval=5):
        row = convert(data[index])
        if row is None:
            continue
        if name.endswith("_prompts"):
            text = repr(row["prompt"])
            if text in seen:
                continue
            seen.add(text)
        yield {"id": f"{name.removesuffix('_prompts')}-{index:06d}", **row}


def sample_preferences(model: Path, data: Path, output: Path, settings: Mapping[str, Any]) -> None:
    """Writes the preference pairs of a model: those of the data set, and the world's on-policy pairs.

    An on-policy pair is two distinct, complete samples (temperature 1) of `model` for a prompt of the data set,
    labelled by a Bradley–Terry draw from the gold reward. `data` is the folder of data sets or the Parquet file.
    """
    data = data / "preferences.parquet" if data.is_dir() else data
    rows = load_table(data, ["id", *COLUMNS["preferences"]])
    wanted = settings.get("on_policy_preferences", 0)
    with atomic_file(output) as temporary:
        if not wanted:
            shutil.copyfile(data, temporary)
            return
        prompts = [row["prompt"][-1]["content"] for row in rows.select_columns(["prompt"])]
        sampled = _on_policy_rows(model, prompts, wanted, settings)
        write_table((*sampled, *rows), temporary, COLUMNS["preferences"])


def _on_policy_rows(folder: Path, prompts: list[str], wanted: int, settings: Mapping[str, Any]) -> list[Row]:
    from po_dynamics.models import load_model, load_tokenizer

    model, tokenizer = load_model(folder), load_tokenizer(folder)
    rng = random.Random(f"on-policy/{settings['seed']}")
    rows: list[Row] = []
    with tqdm(total=wanted, desc="on-policy pairs", unit="pair", mininterval=5) as bar:
        for round_ in range(20):
            # Some pairs are equal or cut off; a few more prompts than pairs usually make up for them.
            chosen = rng.choices(prompts, k=round(1.1 * (wanted - len(rows))) + 8)
            answers = _sample_pairs(model, tokenizer, chosen, settings, round_)
            pairs = [(p, a) for p, a in zip(chosen, answers, strict=True) if a is not None]
            for prompt, pair in pairs[: wanted - len(rows)]:
                rows.append(_pair(f"sampled-{len(rows):05d}", prompt, pair, settings["label_temperature"], rng))
                bar.update()
            if len(rows) == wanted:
                return rows
    raise InputError(
        f"{folder}: only {len(rows)} of {wanted} pairs have two distinct, complete answers; train the SFT model for "
        f"longer, or lower data.on_policy_preferences"
    )


def _sample_pairs(
    model: PreTrainedModel, tokenizer: Any, prompts: list[str], settings: Mapping[str, Any], round_: int
) -> list[tuple[str, str] | None]:
    """Two samples per prompt; None where they are equal, empty or not ended within 64 new tokens."""
    from po_dynamics.rollout import CachedRollout, Sampling, row_uniforms

    sampling = Sampling(max_new_tokens=64, eos_ids=(tokenizer.eos_token_id,), pad_id=tokenizer.pad_token_id)
    conversations = [_user(prompt) for prompt in prompts for _ in range(2)]
    rendered = tokenizer.apply_chat_template(conversations, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    uniforms_BR = row_uniforms(len(ids), sampling, (settings["seed"], round_))
    responses = CachedRollout(model, sampling, batch_size=256)(ids, uniforms_BR)
    texts = [tokenizer.decode(response.ids[:-1]) if response.ended else "" for response in responses]
    pairs = zip(texts[::2], texts[1::2], strict=True)
    return [(a, b) if a and b and a != b else None for a, b in pairs]

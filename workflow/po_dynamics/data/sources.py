"""Published data sets (from the hub or local folders in its schema), row by row into the common schema.

Known schemas: UltraChat-200k (`messages`), binarised UltraFeedback (`chosen`, `rejected` as conversations), HH-RLHF
(`chosen` as one text, of which only the question part is used), AlpacaEval (`instruction`), the common schema itself.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from po_dynamics.errors import InputError

Messages = list[dict[str, str]]
Row = dict[str, Any]

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_READERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}


def load_source(source: Mapping[str, Any], key: str) -> Any:
    """The `datasets.Dataset` that the configuration entry `key` describes.

    `path` is a hub data set, a folder (saved by `save_to_disk`, or files that `load_dataset` reads) or one file; with
    `data_files`, that single file of the hub data set or folder is read, after its `sha256` (if given) was checked.

    Raises:
        InputError: not found or not readable, several splits and none chosen, another SHA-256, no rows.
    """
    from datasets import DatasetDict

    name = str(source["path"])
    try:
        data = _load_file(source) if _names_file(source) else _load_folder(source)
    except InputError as error:
        raise InputError(f"{key}: {error}") from None
    except Exception as error:  # the libraries below raise dozens of kinds, down to plain HTTP errors
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{key}: cannot load {name} ({type(error).__name__}: {reason}); check {key}.path, .split and .data_dir, or "
            f"give a local folder in the hub's schema"
        ) from error
    if isinstance(data, DatasetDict):
        if len(data) > 1:
            raise InputError(f"{key}: {name} has the splits {', '.join(data)}; choose one with {key}.split")
        data = next(iter(data.values()))
    if not len(data):
        raise InputError(f"{key}: {name} is an empty data set; it needs at least one row")
    return data


def _names_file(source: Mapping[str, Any]) -> bool:
    return bool(source.get("data_files")) or Path(str(source["path"])).is_file()


def _load_file(source: Mapping[str, Any]) -> Any:
    # AlpacaEval's repository holds a loading script, which `datasets` refuses even where only its JSON file is wanted.
    from datasets import load_dataset

    root, name = Path(str(source["path"])), source.get("data_files")
    if root.is_file():
        file = root
    elif root.exists():
        file = root / str(name)
    else:
        from huggingface_hub import hf_hub_download

        revision = source.get("revision")
        file = Path(hf_hub_download(str(root), str(name), repo_type="dataset", revision=revision))
    if not file.is_file():
        raise InputError(f"{file} does not exist")
    if wanted := source.get("sha256"):
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != wanted:
            raise InputError(f"{file} has the SHA-256 {found}, not {wanted}: another version, or damaged")
    reader = _READERS.get(file.suffix)
    if reader is None:
        raise InputError(f"{file}: unknown format; known are {', '.join(_READERS)}")
    return load_dataset(reader, data_files=str(file), split="train")


def _load_folder(source: Mapping[str, Any]) -> Any:
    from datasets import DatasetDict, load_dataset, load_from_disk

    path, split = Path(str(source["path"])), source.get("split")
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        data = load_from_disk(str(path))
        if not (isinstance(data, DatasetDict) and split):
            return data
        if split not in data:
            raise InputError(f"{path} has no split {split} (splits: {', '.join(data)})")
        return data[split]
    revision = None if path.exists() else source.get("revision")
    return load_dataset(str(path), source.get("name"), data_dir=source.get("data_dir"), split=split, revision=revision)


def sft_row(row: Row) -> Row | None:
    """`prompt` and `completion` of a conversation, which ends with the last answer; None if there is no answer."""
    messages = [*row["prompt"], *row["completion"]] if "completion" in row else row["messages"]
    messages = _clean(messages)
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if len(messages) < 2 or not messages[-1]["content"]:
        return None
    return {"prompt": messages[:-1], "completion": messages[-1:]}


def preference_row(row: Row) -> Row | None:
    """`prompt`, `chosen`, `rejected`; None if the answers are equal or empty, or follow different prompts."""
    chosen, rejected = _clean(row["chosen"]), _clean(row["rejected"])
    if len(chosen) == len(rejected) == 1:  # the common schema keeps the prompt apart
        prompt = _clean(row["prompt"])
        chosen, rejected = prompt + chosen, prompt + rejected
    if len(chosen) < 2 or chosen[:-1] != rejected[:-1] or chosen[-1] == rejected[-1]:
        return None
    if not (chosen[-1]["content"] and rejected[-1]["content"]):
        return None
    return {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def prompt_row(row: Row) -> Row | None:
    """`prompt`: everything up to the last answer, which the model is to write anew; None if nothing is asked."""
    if "instruction" in row:
        messages = [{"role": "user", "content": row["instruction"]}]
    elif isinstance(row.get("prompt"), str):
        messages = [{"role": "user", "content": row["prompt"]}]
    elif "prompt" in row:
        messages = row["prompt"]
    elif "messages" in row:
        messages = row["messages"]
    elif isinstance(row["chosen"], str):
        messages = split_turns(row["chosen"])
    else:
        messages = row["chosen"]
    messages = _clean(messages)
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    return {"prompt": messages} if messages and messages[-1]["content"] else None


def split_turns(text: str) -> Messages:
    """The turns of an HH-RLHF text ("\\n\\nHuman: … \\n\\nAssistant: …")."""
    parts = _TURN.split(text)
    return [
        {"role": _ROLES[speaker], "content": content.strip()}
        for speaker, content in zip(parts[1::2], parts[2::2], strict=True)
    ]


def _clean(messages: Messages) -> Messages:
    return [{"role": message["role"], "content": message["content"] or ""} for message in messages]

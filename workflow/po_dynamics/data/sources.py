"""Published data sets, from the hub or local files and folders in its formats: loading them, and what was loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from po_dynamics.errors import InputError

_READERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}


def pinned(source: Mapping[str, Any]) -> dict[str, Any]:
    """The entry with the commit of the hub that is read now in place of a branch, a tag or null; null for local data.

    Without the network the entry stays as it is, and what an earlier download left is read.
    """
    if Path(str(source["path"])).exists():
        return {**source, "revision": None}
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(str(source["path"]), revision=source.get("revision")).sha
    except Exception:  # of dozens of kinds; loading the data says what is wrong
        return dict(source)
    return {**source, "revision": commit}


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
    reader = _READERS.get(Path(file.name.removesuffix(".gz")).suffix)
    if reader is None:
        raise InputError(f"{file}: unknown format; known are {', '.join(_READERS)}, also as .gz")
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

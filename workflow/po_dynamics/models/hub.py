"""Published models of the Hugging Face hub, or copies of local folders, complete and with a record of origin.

`source.json` in a model's folder is that record: the name, the commit on the hub (null for a local folder) and the
SHA-256 of all files as they were published. `revision` and `sha256` of the configuration hold a download to them.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from po_dynamics.errors import InputError, first_line
from po_dynamics.models.loading import NORMALISATION, RAW, check_folder, load_model
from po_dynamics.models.tokenizers import load_tokenizer, prepare_tokenizer, read_tokenizer
from po_dynamics.storage.atomic import atomic_folder, put_in_place, sync, write_json

Finish = Callable[[Path], None]

SOURCE = "source.json"

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
LEGACY = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
COMPANIONS = ("*.json", "*.txt", "*.model", "*.jinja", "tokenizer*", "merges*", "vocab*")
ELSEWHERE = ("*.msgpack", "*.h5", "*.onnx", "*.gguf", "original/*", "consolidated*", "onnx/*", "*/*")


def download_base(settings: Mapping[str, Any], output: Path) -> None:
    """As `download`, for a base model: its folder ends with a prepared tokenizer (see `prepare_tokenizer`)."""
    download(settings, output, prepare_folder)


def download(settings: Mapping[str, Any], output: Path, finish: Finish = check_folder) -> None:
    """Puts the model `name` (a local folder, else a hub repository at `revision`) into `output`, with `source.json`.

    Weights are checked to be there, not loaded; `finish` sees the folder before it is put in place. An interrupted
    download goes on where it stopped. InputError where the repository, the revision, the access or the network is
    missing, and where the files have another SHA-256 than `sha256`.
    """
    name, revision = str(settings["name"]), settings.get("revision")
    local = Path(name).expanduser()
    if local.is_dir():
        _copy(local, output, finish, settings.get("sha256"))
    else:
        _fetch(name, revision, output, finish, settings.get("sha256"))


def download_reward(settings: Mapping[str, Any], output: Path) -> None:
    """As `download`, for a reward model whose scores stay raw: a normalisation that it brings is replaced."""

    def finish(folder: Path) -> None:
        check_folder(folder)
        write_json(folder / NORMALISATION, RAW)

    download(settings, output, finish)


def folder_sha256(folder: Path) -> str:
    """SHA-256 of the names and contents of a folder's files, as `sha256sum * | sha256sum` prints it (in C order).

    `source.json`, our own record, is left out.
    """
    lines = []
    for file in sorted(file for file in folder.iterdir() if file.is_file() and file.name != SOURCE):
        with file.open("rb") as content:
            lines.append(f"{hashlib.file_digest(content, 'sha256').hexdigest()}  {file.name}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def prepare_folder(folder: Path) -> None:
    """Prepares the tokenizer and configuration of a published model; weights are rewritten only for new rows."""
    try:
        load_tokenizer(folder)
        return  # it has all that is needed
    except InputError:
        tokenizer = read_tokenizer(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    if len(tokenizer) >= model.get_input_embeddings().weight.shape[0]:  # a new token could need a new row
        model = load_model(folder, device="cpu")
        prepare_tokenizer(tokenizer, model)
        model.save_pretrained(folder)
    else:
        prepare_tokenizer(tokenizer, model)
        model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _copy(local: Path, output: Path, finish: Finish, sha256: str | None) -> None:
    check_folder(local)
    with atomic_folder(output) as temporary:
        for file in sorted(local.iterdir()):
            if file.is_file():
                shutil.copy2(file, temporary / file.name)
        found = _checked_sha256(temporary, local.name, sha256)
        finish(temporary)
        write_json(temporary / SOURCE, {"name": local.name, "revision": None, "sha256": found})


def _checked_sha256(folder: Path, name: str, wanted: str | None) -> str:
    found = folder_sha256(folder)
    if wanted not in (None, found):
        raise InputError(f"{name} has the SHA-256 {found}, not {wanted}: another version, or damaged; see {__name__}")
    return found


def _fetch(name: str, revision: str | None, output: Path, finish: Finish, sha256: str | None) -> None:
    partial = output.with_name(f".{output.name}.partial")  # kept when interrupted: the hub client resumes it
    try:
        commit = _snapshot(name, revision, partial)
    except (OSError, ValueError) as error:  # the hub's errors are of both kinds
        at = f" at revision {revision}" if revision else ""
        reason = first_line(error)
        raise InputError(f"cannot download {name}{at}: {reason}; check name, access (HF_TOKEN) and network") from None
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    check_folder(partial)
    found = _checked_sha256(partial, name, sha256)
    finish(partial)
    write_json(partial / SOURCE, {"name": name, "revision": commit, "sha256": found})
    sync(partial)
    put_in_place(partial, output)


def _snapshot(name: str, revision: str | None, folder: Path) -> str:
    """Downloads weights and their companions into `folder`; the commit that they are of."""
    from huggingface_hub import HfApi, snapshot_download

    found = HfApi().model_info(name, revision=revision)
    files = [sibling.rfilename for sibling in found.siblings or []]
    weights = WEIGHTS if any("/" not in f and f.endswith(".safetensors") for f in files) else LEGACY
    patterns = [*weights, *COMPANIONS]
    print(f"downloading {name} at {found.sha}", file=sys.stderr)
    snapshot_download(
        name, revision=found.sha, local_dir=folder, allow_patterns=patterns, ignore_patterns=list(ELSEWHERE)
    )
    for file in folder.iterdir():  # what an earlier attempt made of the model before it was killed
        if file.is_file() and file.name not in files:
            file.unlink()
    return str(found.sha)

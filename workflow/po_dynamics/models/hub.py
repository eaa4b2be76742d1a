"""Published models of the Hugging Face hub, or copies of local folders, complete and with a record of origin."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from po_dynamics.errors import InputError, first_line
from po_dynamics.models.loading import check_folder, load_model
from po_dynamics.models.tokenizers import load_tokenizer, prepare_tokenizer, read_tokenizer
from po_dynamics.storage.atomic import atomic_folder, put_in_place, sync, write_json

Finish = Callable[[Path], None]

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
    missing.
    """
    name, revision = str(settings["name"]), settings.get("revision")
    local = Path(name).expanduser()
    if local.is_dir():
        _copy(local, output, finish)
    else:
        _fetch(name, revision, output, finish)


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


def _copy(local: Path, output: Path, finish: Finish) -> None:
    check_folder(local)
    with atomic_folder(output) as temporary:
        for file in sorted(local.iterdir()):
            if file.is_file():
                shutil.copy2(file, temporary / file.name)
        finish(temporary)
        write_json(temporary / "source.json", {"name": local.name, "revision": None})


def _fetch(name: str, revision: str | None, output: Path, finish: Finish) -> None:
    from huggingface_hub import HfApi, snapshot_download

    partial = output.with_name(f".{output.name}.partial")  # kept when interrupted: the hub client resumes it
    try:
        found = HfApi().model_info(name, revision=revision)
        files = [sibling.rfilename for sibling in found.siblings or []]
        weights = WEIGHTS if any("/" not in f and f.endswith(".safetensors") for f in files) else LEGACY
        patterns = [*weights, *COMPANIONS]
        print(f"downloading {name} at {found.sha}", file=sys.stderr)
        snapshot_download(
            name, revision=found.sha, local_dir=partial, allow_patterns=patterns, ignore_patterns=list(ELSEWHERE)
        )
    except (OSError, ValueError) as error:  # the hub's errors are of both kinds
        at = f" at revision {revision}" if revision else ""
        reason = first_line(error)
        raise InputError(f"cannot download {name}{at}: {reason}; check name, access (HF_TOKEN) and network") from None
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    check_folder(partial)
    finish(partial)
    write_json(partial / "source.json", {"name": name, "revision": found.sha})
    sync(partial)
    put_in_place(partial, output)

"""What lies in local sources that a configuration names, in a short hash: replaced, they make results stale.

A file is read once: its hash is kept, with its size and time, in a file of Snakemake's own folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

KNOWN = Path(".snakemake/content.json")


def of_path(path: Path | str, known: Path = KNOWN) -> str:
    """Sixteen hexadecimal digits that follow from the content of a file, or of all files of a folder and their names.

    "" where nothing lies there: a source of the hub. Hidden files do not count.
    """
    path = Path(path).expanduser()
    if not path.exists():
        return ""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if _counts(file, path))
    before = _read(known)
    after = {str(file.resolve()): _entry(file, before) for file in files}
    if any(before.get(name) != entry for name, entry in after.items()):
        _write(known, before | after)
    names = [file.name if file == path else str(file.relative_to(path)) for file in files]
    lines = [f"{name}\0{entry[2]}\n" for name, entry in zip(names, after.values(), strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def of_data(source: Mapping[str, Any]) -> str:
    """As `of_path`, of the part of a folder that an entry of the configuration's `data` reads."""
    return of_path(Path(source["path"], source.get("data_files") or source.get("data_dir") or ""))


def of_module(name: str) -> str:
    """As `of_path`, of the file of a module that Python finds; "" for none."""
    try:
        found = importlib.util.find_spec(name) if name else None
    except (ImportError, ValueError):
        return ""
    return of_path(found.origin) if found and found.origin else ""


def _counts(file: Path, root: Path) -> bool:
    return file.is_file() and not any(part.startswith(".") for part in file.relative_to(root).parts)


def _entry(file: Path, before: Mapping[str, Any]) -> list[Any]:
    """Size, time and hash of a file, which is read only if size or time are new."""
    about = file.stat()
    entry = before.get(str(file.resolve()))
    if entry is not None and entry[:2] == [about.st_size, about.st_mtime_ns]:
        return list(entry)
    with file.open("rb") as stream:
        return [about.st_size, about.st_mtime_ns, hashlib.file_digest(stream, "sha256").hexdigest()]


def _write(known: Path, entries: Mapping[str, Any]) -> None:
    known.parent.mkdir(exist_ok=True)
    temporary = known.with_name(f".{known.name}.{os.getpid()}")
    temporary.write_text(json.dumps(entries, sort_keys=True), encoding="utf-8")
    temporary.replace(known)


def _read(known: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(known.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found

"""Files and folders that are complete or absent."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

STALE_AFTER = 86_400  # seconds after which another host's temporary counts as abandoned


def _temporary(path: Path, kind: str = "tmp") -> Path:
    return path.with_name(f".{path.name}.{socket.gethostname()}~{os.getpid()}.{kind}")


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def _clean_stale(path: Path) -> None:
    """Removes temporaries of `path` that a dead process left; those of this very number are from an earlier life."""
    for sibling in path.parent.glob(f".{path.name}.*~*.*"):
        host, _, rest = sibling.name[len(path.name) + 2 :].rpartition("~")
        pid = rest.split(".")[0]
        if not pid.isdigit() or not rest.endswith((".tmp", ".old")):
            continue
        local = host == socket.gethostname() and (int(pid) == os.getpid() or not _is_running(int(pid)))
        if local or (host != socket.gethostname() and time.time() - sibling.stat().st_mtime > STALE_AFTER):
            remove(sibling)


def remove(path: Path) -> None:
    """Deletes a file or a folder; a missing one is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flushes a file, or every file below a folder, to the disk."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    for file in [*files, path if path.is_dir() else path.parent]:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network file systems refuse to sync a folder
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def put_in_place(temporary: Path, path: Path) -> None:
    """Renames a complete folder to `path`, which it replaces."""
    if path.is_dir() and any(path.iterdir()):
        old = _temporary(path, "old")
        path.rename(old)
        temporary.rename(path)
        remove(old)
    else:
        temporary.rename(path)


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Yields an empty temporary sibling that becomes `path` when the block succeeds, and vanishes when it fails.

    A folder that is already there stays as it is until the new one is complete and on disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _clean_stale(path)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        sync(temporary)
        put_in_place(temporary, path)
    except BaseException:
        remove(temporary)
        raise


@contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Yields the path of a temporary sibling, for the block to write, that replaces `path` when the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _clean_stale(path)
    temporary = _temporary(path)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        remove(temporary)
        raise


def write_json(path: Path | str, content: Any) -> None:
    """Writes indented JSON atomically; floats keep all their digits."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")

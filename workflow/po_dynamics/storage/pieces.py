"""Finished pieces of a long computation, kept on disk so that a killed job goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from po_dynamics.storage.atomic import atomic_file, remove


class Pieces:
    """Pieces (numbers, tensors, lists and dicts of them) by name; written at most every `every_s` seconds.

    A computation shorter than that writes none of its pieces. `key` says what they are pieces of (samples, a
    checkpoint): those that were stored under another key are deleted. Without a folder nothing is ever written.
    """

    def __init__(self, folder: Path | None = None, key: str = "", every_s: float = 30.0) -> None:
        self.folder, self.every_s, self._saved_at = folder, every_s, time.monotonic()
        self._pieces: dict[str, Any] = {}
        self._unsaved: dict[str, Any] = {}
        self._parts = 0
        if folder is not None:
            self._open(folder, key)

    def _open(self, folder: Path, key: str) -> None:
        import torch

        marker = folder / "key"
        if folder.is_dir() and not (marker.is_file() and marker.read_text(encoding="utf-8") == key):
            remove(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if not marker.is_file():
            with atomic_file(marker) as temporary:
                temporary.write_text(key, encoding="utf-8")
        for part in sorted(folder.glob("part-*.pt")):
            self._pieces.update(torch.load(part, map_location="cpu", weights_only=True))
            self._parts += 1

    def piece(self, name: str, compute: Callable[[], Any]) -> Any:
        """The stored piece, or the one that `compute` makes now."""
        if name not in self._pieces:
            self.put(name, compute())
        return self._pieces[name]

    def get(self, name: str) -> Any:
        """The stored piece, or None."""
        return self._pieces.get(name)

    @property
    def due(self) -> bool:
        """Whether the next `put` will write."""
        return self.folder is not None and time.monotonic() - self._saved_at >= self.every_s

    def put(self, name: str, piece: Any) -> None:
        """Remembers a piece, and writes all new ones when it is time."""
        self._pieces[name] = piece
        if self.folder is None:
            return
        self._unsaved[name] = piece
        if self.due:
            self._write(self.folder)

    def _write(self, folder: Path) -> None:
        import torch

        with atomic_file(folder / f"part-{self._parts:06}.pt") as temporary:
            torch.save(self._unsaved, temporary)
        self._unsaved, self._parts, self._saved_at = {}, self._parts + 1, time.monotonic()

    def close(self) -> None:
        """Removes the pieces: the result is in its place."""
        if self.folder is not None:
            remove(self.folder)

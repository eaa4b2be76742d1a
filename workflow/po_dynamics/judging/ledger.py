"""Answers of a judge, each on disk as soon as it has come: no answer is paid for twice.

A ledger is one file of JSON lines, `{"key", "usd", "tokens", "answer"}`, written by one job, appended and never
rewritten; all ledgers below one folder are read by every job of an experiment. The key is a hash of all that an answer
depends on (model, endpoint, sampling parameters, full prompt), so a changed template or another order never meets a
stale answer. A line that a kill tore is cut off when its job comes back, and is passed over by all others.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from po_dynamics.errors import InputError

Answer = dict[str, Any]


class Paid(NamedTuple):
    """An answer, its price in USD, and the tokens of its prompt and reply where they are known."""

    answer: Answer
    usd: float = 0.0
    tokens: tuple[int, int] | None = None


_LINE = re.compile(rb'\{"key":"([0-9a-f]{32})","usd":([-+.0-9e]+),')
_SYNC = 1.0  # seconds between two writes to the disk itself: what a power failure may cost; a kill costs nothing


def key_of(*identity: Any) -> str:
    """32 hexadecimal digits of anything that is plain JSON."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


class Ledger:
    """The ledger of one job, open for appending, and those of other jobs below `shared`, which are only read.

    Raises:
        InputError: on entry, when another process writes this ledger.
    """

    def __init__(self, path: Path, shared: Path | None = None) -> None:
        self.path, self.shared = path, shared
        self._descriptor, self._synced = -1, 0.0
        self._seen: dict[Path, int] = {}  # bytes of every file that `spent` has counted
        self._requests, self._usd = 0, 0.0

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise InputError(f"{self.path}: another process writes this ledger; wait for it or end it") from None
        except OSError:
            print(f"{self.path}: no locks on this file system", file=sys.stderr)  # Snakemake's own lock is left
        self._mend()
        self._own = os.fstat(self._descriptor).st_size
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.fsync(self._descriptor)
        os.close(self._descriptor)

    def find(self, keys: Collection[str]) -> dict[str, Answer]:
        """The answers among `keys` that any ledger holds."""
        wanted = {key.encode() for key in keys}
        found: dict[str, Answer] = {}
        for path in self._files():
            for line in _lines(path.read_bytes()):
                match = _LINE.match(line)
                if match and match[1] in wanted:
                    with suppress(ValueError):  # torn, and grown together with the next: as good as absent
                        found[match[1].decode()] = json.loads(line)["answer"]
        return found

    def add(self, key: str, paid: Paid) -> None:
        """Appends an answer."""
        line = {"key": key, "usd": round(paid.usd, 9), "tokens": paid.tokens, "answer": paid.answer}
        os.write(self._descriptor, json.dumps(line, separators=(",", ":")).encode() + b"\n")
        if time.monotonic() - self._synced > _SYNC:
            os.fsync(self._descriptor)
            self._synced = time.monotonic()

    def spent(self) -> tuple[int, float]:
        """Answers and USD of all jobs, without those of this one since it opened its ledger."""
        for path in self._files():
            with path.open("rb") as file:
                file.seek(self._seen.get(path, 0))
                new = file.read(self._own if path == self.path else -1)
            if path == self.path and path in self._seen:
                continue
            counted = new[: new.rfind(b"\n") + 1]
            self._seen[path] = self._seen.get(path, 0) + len(counted)
            costs = [float(match[2]) for line in _lines(counted) if (match := _LINE.match(line))]
            self._requests, self._usd = self._requests + len(costs), self._usd + sum(costs)
        return self._requests, self._usd

    def _files(self) -> list[Path]:
        others = set(self.shared.rglob("*.jsonl")) if self.shared else set()
        return sorted(others | {self.path})

    def _mend(self) -> None:
        """Cuts off what follows the last whole line."""
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            print(f"{self.path}: a torn last line was cut off", file=sys.stderr, flush=True)
            os.ftruncate(self._descriptor, whole)


def _lines(content: bytes) -> Iterator[bytes]:
    """Whole lines that are whole JSON objects; others are being written, or were torn."""
    end = content.rfind(b"\n")
    return (line for line in content[: max(end, 0)].split(b"\n") if line.endswith(b"}"))

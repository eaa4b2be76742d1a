"""What a run needs to be killed at any moment: its signature, SIGTERM, the training log."""

from __future__ import annotations

import csv
import hashlib
import json
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from po_dynamics.errors import InputError
from po_dynamics.storage.atomic import atomic_file, remove, write_json

TERMINATED = 143  # exit status of a process that obeyed a SIGTERM


class Termination:
    """Turns SIGTERM into a flag: `with Termination() as termination:` and, at a boundary of the loop,
    `if termination.requested:` save, then `termination.exit()`.

    The previous handler comes back at the end. Outside the main thread, where Python allows none, it does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None
        self._installed = False

    def _request(self, _signal: int, _frame: FrameType | None) -> None:
        self.requested = True

    def __enter__(self) -> Termination:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._request)
            self._installed = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGTERM, self._previous or signal.SIG_DFL)
            self._installed = False

    def exit(self) -> None:
        """Ends the process as SIGTERM would have: status 143."""
        raise SystemExit(TERMINATED)


def identity(path: Path) -> list[list[Any]]:
    """What tells whether an input changed: the hash of a file; names, sizes and times of the files in a folder."""
    if path.is_file():
        with path.open("rb") as file:
            return [[path.name, hashlib.file_digest(file, "sha256").hexdigest()]]
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return [[str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def open_state(state: Path, signature: Mapping[str, Any]) -> None:
    """Makes the folder of a run's resumable state, emptying it when it belongs to a run with another `signature`.

    `signature` holds whatever decides the run (settings, inputs), as JSON; without this check, an interrupted run would
    continue under settings that changed meanwhile.
    """
    file = state / "signature.json"
    wanted = json.loads(json.dumps(signature, sort_keys=True, default=str))
    if state.exists() and any(state.iterdir()):
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        if found != wanted:
            print(f"{state}: state of a run with other settings or inputs; starting afresh", flush=True)
            remove(state)
    state.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        write_json(file, wanted)


class TrainingLog:
    """`training.csv`: one row per logged step, first column `step`; a resumed run continues it exactly.

    `rewind(step)` drops the rows after `step` and any line that a kill tore; `append` adds one row and flushes it.
    Columns that appear later are added, empty before.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.columns: list[str] = []

    def rewind(self, step: int) -> None:
        rows = [row for row in self._rows() if int(row["step"]) <= step]
        self.columns = list(rows[0]) if rows else []
        self._rewrite(rows) if rows else remove(self.path)

    def append(self, step: int, values: Mapping[str, float]) -> None:
        row = {"step": str(step)} | {k: repr(v if isinstance(v, int) else float(v)) for k, v in values.items()}
        new = [name for name in row if name not in self.columns]
        if new:
            rows = self._rows()
            self.columns += new
            self._rewrite([*rows, row])
            return
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self.columns, restval="", lineterminator="\n").writerow(row)

    def _rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        return [row for row in csv.DictReader(whole) if row["step"].isdigit()]

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        with atomic_file(self.path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def require_finite(value: float, *, what: str, step: int, sample_ids: list[Any], last_good: Path | None) -> None:
    """Raises InputError for a NaN or an infinity, naming the step, the batch and the checkpoint to go back to."""
    if value == value and abs(value) != float("inf"):
        return
    ids = ", ".join(str(i) for i in sample_ids[:16]) + (", …" if len(sample_ids) > 16 else "") or "unknown"
    good = f"the last good checkpoint is {last_good}" if last_good else "there is no checkpoint yet"
    raise InputError(
        f"{what} is {value} at step {step} (sample ids: {ids}); {good}; lower the learning rate or check these samples"
    )

"""Files that are complete or absent, SIGTERM, training logs and the checkpoints that the probe reads.

Exact resume of `transformers.Trainer` is in `resume`, so that light callers do not import transformers here.

Snakemake deletes the outputs of a failed job: whatever an interrupted run needs again (resumable state, the checkpoints
for the probe, the log) belongs into the stage's `state` folder and is moved to its declared place at the end.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from po_dynamics.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TERMINATED = 143  # exit status of a process that obeyed a SIGTERM
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
        os.replace(temporary, path)
    except BaseException:
        remove(temporary)
        raise


def write_json(path: Path | str, content: Any) -> None:
    """Writes indented JSON atomically; floats keep all their digits."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


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


def _write_optimizer(moments: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer, folder: Path) -> None:
    from safetensors.torch import save_file

    if not moments:
        return
    save_file(moments, folder / "exp_avg_sq.safetensors")
    group = optimizer.param_groups[0]
    # Not the checkpoint's step: an update of PPO takes several optimizer steps, and bias correction needs their count.
    step = max(int(state["step"]) for state in optimizer.state.values())
    content = {"step": step, "learning_rate": float(group["lr"]), "betas": [float(b) for b in group["betas"]]}
    content |= {"eps": float(group["eps"]), "weight_decay": float(group["weight_decay"])}
    (folder / "optimizer.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def save_float32(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes weights (float32), configuration and tokenizer; `folder` loads with `from_pretrained`.

    Only through `save_pretrained`: TRL patches `forward` on the instance, and a deep copy would run the live weights.
    """
    from po_dynamics import sharding

    _write_model(model, sharding.weights(model, everywhere=not sharding.is_sharded(model)), tokenizer, folder)


def _write_model(
    model: PreTrainedModel, weights: dict[str, torch.Tensor], tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_step(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    critic: PreTrainedModel | None = None,
) -> None:
    """Writes the checkpoint that the probe reads into `folder`, atomically; an earlier one is replaced.

    With an optimizer that has taken a step also `exp_avg_sq.safetensors` and `optimizer.json`, whose step is the
    optimizer's own count and whose learning rate is that of the next step. `critic` goes to `folder/critic`. Every
    process calls it (sharded weights are gathered), the first one writes, and nobody waits for that.
    """
    from po_dynamics import sharding

    model, critic = sharding.unwrapped(model), sharding.unwrapped(critic)
    weights = sharding.weights(model)
    moments = sharding.second_moments(model, optimizer) if optimizer is not None else {}
    critic_weights = sharding.weights(critic) if critic is not None else {}
    if not sharding.is_writer():
        return
    with atomic_folder(folder) as temporary:
        _write_model(model, weights, tokenizer, temporary)
        if optimizer is not None:
            _write_optimizer(moments, optimizer, temporary)
        if critic is not None:
            _write_model(critic, critic_weights, tokenizer, temporary / "critic")


def require_finite(value: float, *, what: str, step: int, sample_ids: list[Any], last_good: Path | None) -> None:
    """Raises InputError for a NaN or an infinity, naming the step, the batch and the checkpoint to go back to."""
    if value == value and abs(value) != float("inf"):
        return
    ids = ", ".join(str(i) for i in sample_ids[:16]) + (", …" if len(sample_ids) > 16 else "") or "unknown"
    good = f"the last good checkpoint is {last_good}" if last_good else "there is no checkpoint yet"
    raise InputError(
        f"{what} is {value} at step {step} (sample ids: {ids}); {good}; lower the learning rate or check these samples"
    )

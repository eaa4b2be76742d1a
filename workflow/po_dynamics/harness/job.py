"""What every script of the workflow shares: a log, one-line errors and a provenance record."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from po_dynamics.errors import InputError

PACKAGES = ("torch", "transformers", "trl", "datasets", "pandas", "seaborn", "alpaca_eval", "openai", "snakemake")
# Rules that may use the hub, by how their names begin: whoever downloads, or judges, perhaps with a model of it.
ONLINE = ("download_", "examine_judge", "judge_responses", "mark_judge", "retrain_")


class Tee:
    """Writes to a log file in full and to the terminal with a prefix, one progress line at a time."""

    def __init__(self, log: TextIO, terminal: TextIO, prefix: str) -> None:
        self.log, self.terminal, self.prefix = log, terminal, prefix

    def write(self, text: str) -> int:
        # tqdm redraws a line with "\r"; several jobs share the terminal, so each redraw becomes a line of its own.
        text = text.replace("\r", "\n")
        self.log.write(text)
        for line in filter(str.strip, text.splitlines()):
            self.terminal.write(f"[{self.prefix}] {line.strip()}\n")
        self.flush()
        return len(text)

    def flush(self) -> None:
        self.log.flush()
        self.terminal.flush()

    def isatty(self) -> bool:
        return False


@contextlib.contextmanager
def stage(snakemake: Any) -> Iterator[None]:
    """Runs a script's body: standard error goes to `log` and the terminal, an `InputError` ends the job with one line.

    On success `output.provenance` (if the rule has one) is written: rule, wildcards, parameters, commit, versions,
    hardware, wall time in seconds and peak memory in MB, and the sources of what it downloaded.
    """
    _set_environment(snakemake.rule, snakemake.threads)
    started, clock = datetime.datetime.now(datetime.UTC), time.monotonic()
    label = " ".join([snakemake.rule, *(str(v) for k, v in snakemake.wildcards.items() if k != "experiment")])
    stderr = sys.stderr
    with Path(snakemake.log[0]).open("w", encoding="utf-8") as log:
        sys.stderr = Tee(log, stderr, label)  # type: ignore[assignment]
        try:
            yield
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(1) from None
        except BaseException:
            import traceback

            log.write(traceback.format_exc())
            raise
        finally:
            sys.stderr = stderr
    if "provenance" in snakemake.output.keys():  # noqa: SIM118 (Snakemake's container is a list)
        record = _provenance(snakemake, started, time.monotonic() - clock)
        Path(snakemake.output.provenance).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def inputs_of(snakemake: Any) -> dict[str, Any]:
    """The named inputs of a job as paths (lists of paths), without the records beside them."""
    named = {name: value for name, value in snakemake.input.items() if not name.endswith("_record")}
    return {name: Path(v) if isinstance(v, str) else list(map(Path, v)) for name, v in named.items()}


def _set_environment(rule: str, threads: int) -> None:
    if not rule.startswith(ONLINE):  # before anything is imported
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of reading and writing weight shards
    warnings.simplefilter("ignore", FutureWarning)
    if "torch" not in sys.modules:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    else:
        import torch

        torch.set_num_threads(threads)


def _provenance(snakemake: Any, started: datetime.datetime, seconds: float) -> dict[str, Any]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "rule": snakemake.rule,
        "wildcards": dict(snakemake.wildcards.items()),
        "params": {k: v for k, v in snakemake.params.items() if not callable(v)},
        "outputs": [str(path) for path in snakemake.output],
        "sources": _sources(snakemake.output),
        "started": started.isoformat(timespec="seconds"),
        "wall_seconds": round(seconds, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "max_rss_mb": usage.ru_maxrss // 1024,
        "threads": snakemake.threads,
        "host": {"machine": platform.machine(), "cpus": os.cpu_count(), "gpus": _gpus()},
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _commit(),
    }


def _sources(outputs: Iterable[Any]) -> list[Any]:
    """What was downloaded or copied: revision and checksum, as the stage left them in `source.json`."""
    records = [Path(str(output)) / "source.json" for output in outputs]
    return [json.loads(record.read_text(encoding="utf-8")) for record in records if record.is_file()]


def _gpus() -> list[str]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _commit() -> str | None:
    """The checked-out commit, with '+' when files differ from it; None outside a git checkout."""
    try:
        describe = ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--match="]
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None

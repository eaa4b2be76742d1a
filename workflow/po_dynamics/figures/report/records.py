"""What provenance records say of the jobs behind a report: time, memory, machines, versions."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

_MODEL_FOLDERS = {"checkpoints", "base", "sft", "reward", "tokenizer", "state"}


def find_records(root: Path) -> list[Path]:
    """Provenance records below `root`, by name; folders of models hold none and are skipped."""
    found: list[Path] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name not in _MODEL_FOLDERS)
        found += [Path(folder) / name for name in names if name.endswith(".json")]
    return sorted(found)


def read_records(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The JSON files that are provenance records; others (a tokenizer's, say) are passed over."""
    records = []
    for path in paths:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(record, dict) and {"rule", "wall_seconds", "max_rss_mb", "started"} <= set(record):
            records.append(record)
    return sorted(records, key=lambda record: (record["started"], record["rule"], record.get("outputs", [])))


def stages(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Wall time and memory by rule, in the order in which they began, and the machines and versions behind them."""
    rules: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        rules.setdefault(record["rule"], []).append(record)
    rows = [
        {
            "rule": rule,
            "jobs": len(jobs),
            "seconds": sum(job["wall_seconds"] for job in jobs),
            "longest": max(job["wall_seconds"] for job in jobs),
            "memory": max(job["max_rss_mb"] for job in jobs),
        }
        for rule, jobs in rules.items()
    ]
    ends = [_moment(record["started"]) + datetime.timedelta(seconds=record["wall_seconds"]) for record in records]
    return {
        "rows": rows,
        "seconds": sum(row["seconds"] for row in rows),
        "memory": max((row["memory"] for row in rows), default=0),
        "first": _moment(records[0]["started"]).strftime("%Y-%m-%d %H:%M:%S") if records else None,
        "last": max(ends).strftime("%Y-%m-%d %H:%M:%S") if records else None,
        "commits": sorted({str(record.get("commit") or "not a git checkout") for record in records}),
        "hosts": sorted({_host(record.get("host")) for record in records}),
        "versions": {k: v for record in records for k, v in (record.get("versions") or {}).items()},
    }


def _moment(text: str) -> datetime.datetime:
    moment = datetime.datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


def _host(host: Any) -> str:
    if not isinstance(host, Mapping):
        return str(host or "unknown")
    gpus = ", ".join(host.get("gpus") or []) or "no GPU"
    return f"{host.get('machine', 'unknown')}, {host.get('cpus', '?')} CPUs, {gpus}"

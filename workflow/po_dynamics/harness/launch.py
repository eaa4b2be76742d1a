"""Calls a stage's function, in this process or on several devices through `accelerate launch`.

A `script:` runs in one process. With more than one graphics card the function and its arguments go through a JSON file
to `accelerate launch`, whose processes call the same function.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from po_dynamics.errors import InputError
from po_dynamics.objectives.declaration import Objective
from po_dynamics.objectives.registry import bind

SHARDED = ("--config_file", "slurm/fsdp.yaml")  # every process holds a part of the weights


def launch(function: str, arguments: Mapping[str, Any], devices: int = 1, options: Sequence[str] = SHARDED) -> None:
    """Calls "module:function" with keyword arguments (paths and bound objectives survive), on `devices` processes.

    `options` go to `accelerate launch`. Raises InputError when the launched processes fail; their own messages are in
    the log.
    """
    if devices <= 1:
        _call(function, arguments)
        return
    with tempfile.NamedTemporaryFile("w", suffix=".json") as job:
        json.dump({"function": function, "arguments": arguments}, job, default=_encode)
        job.flush()
        accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(devices), *options]
        process = subprocess.Popen(
            [*accelerate, "-m", "po_dynamics.harness.launch", job.name],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert process.stdout
        for line in process.stdout:
            sys.stderr.write(line)
        if status := process.wait():
            raise InputError(f"{function} failed with status {status} on {devices} devices; the log has the reason")


def _encode(value: Any) -> dict[str, Any]:
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, Objective):
        return {"objective": value.name, "parameters": value.parameters}
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be handed to another process")


def _decode(value: dict[str, Any]) -> Any:
    if value.keys() == {"objective", "parameters"}:
        return bind(value["objective"], value["parameters"])
    return Path(value["path"]) if value.keys() == {"path"} else value


def _call(function: str, arguments: Mapping[str, Any]) -> None:
    module, _, name = function.partition(":")
    getattr(importlib.import_module(module), name)(**arguments)


def main() -> None:
    """What a launched process runs: the job in the file that its first argument names."""
    job = json.loads(Path(sys.argv[1]).read_text(), object_hook=_decode)
    try:
        _call(job["function"], job["arguments"])
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

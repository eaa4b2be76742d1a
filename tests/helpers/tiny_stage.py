"""A stage for the launcher's tests: what every process was given, and who took part."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from po_dynamics.errors import InputError
from po_dynamics.objectives.declaration import Objective


def report(output: Path, objective: Objective, settings: dict[str, Any]) -> None:
    """Writes `output/<rank>.json`; `total` adds rank + 1 over the processes, through gloo."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    total = torch.tensor(rank + 1)
    torch.distributed.all_reduce(total)
    about = {"objective": objective.name, "parameters": dict(objective.parameters), "settings": settings}
    about |= {"total": int(total), "sharded": os.environ.get("ACCELERATE_USE_FSDP")}
    (output / f"{rank}.json").write_text(json.dumps(about))
    torch.distributed.destroy_process_group()


def refuse(output: Path) -> None:
    raise InputError(f"{output} is no place for a model")

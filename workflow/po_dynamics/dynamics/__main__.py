"""`python -m po_dynamics.dynamics RESULTS …`: what another objective, schedule or grouping would have given."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from po_dynamics.dynamics import segments
from po_dynamics.dynamics.alignment import Options, dynamics
from po_dynamics.dynamics.observables.resolution import resolution
from po_dynamics.dynamics.stored import find, load
from po_dynamics.dynamics.tables import read_metadata
from po_dynamics.errors import InputError
from po_dynamics.objectives.registry import OBJECTIVES
from po_dynamics.storage.atomic import atomic_file

_HIDDEN = ["n_batches", "n_outliers", "n_final_outliers", "loss", "G_adamw", "equal_weights", "u_norm", "v_norm"]
_HIDDEN += ["G_controlled", "G_controlled_low", "G_controlled_high", "share_positive", "sign_p"]


def reslice(
    results: Path, options: Options, objective: str | None = None, parameters: dict[str, Any] | None = None
) -> pd.DataFrame:
    """`dynamics` of every probed checkpoint below RESULTS with other options.

    Without `objective`, parameters apply to each run whose objective has them; with one, to the runs of its family.
    """
    parts = []
    for keys, folder in find(results):
        about = read_metadata(folder / "scores.parquet")
        chosen = variant(about, objective, parameters or {})
        if chosen is not None:
            changed = options._replace(objective=chosen[0], parameters=chosen[1])
            parts.append(dynamics(load(keys, folder), changed).assign(objective=chosen[0] or about["objective"]))
    if not parts:
        wanted = objective or ", ".join(parameters or {}) or "anything"
        raise InputError(f"{results} holds no probe of a run that {wanted} applies to")
    return pd.concat(parts, ignore_index=True)


def variant(
    about: Mapping[str, Any], objective: str | None, parameters: Mapping[str, Any]
) -> tuple[str | None, dict[str, Any]] | None:
    """Objective (None: as probed) and parameters for one run; None where they do not concern its family.

    Without an objective, it is the one that was probed if that has the parameters, else the first of its family that
    has: λ makes cppo_top of ppo.
    """
    family = {name: set(entry.parameters) for name, entry in OBJECTIVES.items() if entry.family == about["family"]}
    if objective is not None:
        return (objective, _known(parameters, family[objective])) if objective in family else None
    wanted = _known(parameters, set().union(*family.values()))
    if not wanted:
        return None if parameters else (None, {})
    if set(wanted) <= family.get(about["objective"], set()):
        return None, wanted
    first = next((name for name, known in family.items() if set(wanted) <= known), None)
    if first is None:
        raise InputError(f"no {about['family']} objective has all of {', '.join(wanted)}; give --objective")
    return first, wanted


def _known(parameters: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if name in names}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, or writes it with `--output`."""
    parser = _parser()
    known, others = parser.parse_known_args(arguments)
    try:
        parameters = _parameters(others, known.objective)
        options = Options(
            groups=known.groups,
            fence=known.fence,
            per_component=known.per_component,
            level=known.level,
            seed=known.seed,
        )
        if known.segments == "layers":
            table = pd.concat([_layers(*item, options) for item in find(known.results)], ignore_index=True)
        else:
            table = reslice(known.results, options, known.objective, parameters)
    except InputError as error:
        sys.exit(f"error: {error}")
    if known.needed:
        table = resolution(table)
    if known.output:
        with atomic_file(known.output) as temporary:
            table.to_csv(temporary, index=False) if known.output.suffix == ".csv" else table.to_parquet(temporary)
        return
    print(table.drop(columns=_HIDDEN, errors="ignore").to_string(index=False, float_format="%.4g"))


def _layers(keys: dict[str, Any], folder: Path, options: Options) -> pd.DataFrame:
    probe = load(keys, folder)
    return dynamics(probe, options._replace(segments=segments.single(probe.tables.metadata["layers"])))


def _parser() -> argparse.ArgumentParser:
    names = sorted({key for entry in OBJECTIVES.values() for key in entry.parameters})
    parser = argparse.ArgumentParser(
        prog="python -m po_dynamics.dynamics",
        description="Slices stored token scores anew, without a GPU and without a model.",
        epilog="Parameters of objectives: " + ", ".join(f"--{name} X" for name in names),
    )
    parser.add_argument("results", type=Path, metavar="RESULTS", help="results/<experiment>")
    parser.add_argument("--objective", choices=sorted(OBJECTIVES), help="default: the one that was probed")
    parser.add_argument("--groups", type=int, default=3, help="quantile groups of ω or |Â| (3: TOP, MID, BOT)")
    parser.add_argument("--fence", type=float, default=1.5, help="outliers are above Q3 + fence · (Q3 − Q1)")
    parser.add_argument("--per-component", action="store_true", help="an outlier mask for each component")
    parser.add_argument("--segments", choices=["thirds", "layers"], default="thirds")
    parser.add_argument("--level", type=float, default=0.95, help="of the bootstrap intervals")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument(
        "--needed", action="store_true", help="which signs are known, and how many samples the others would need"
    )
    parser.add_argument("--output", type=Path, help="a .parquet or .csv file instead of the screen")
    return parser


def _parameters(arguments: Sequence[str], objective: str | None) -> dict[str, float]:
    """`--beta 0.05` and the like; InputError for anything that no objective has."""
    entries = [OBJECTIVES[objective]] if objective else list(OBJECTIVES.values())
    known = {key for entry in entries for key in entry.parameters}
    names, values = arguments[::2], arguments[1::2]
    if len(names) != len(values):
        raise InputError(f"{names[-1]} needs a value")
    parameters = {}
    for name, value in zip(names, values, strict=True):
        if not name.startswith("--") or name[2:] not in known:
            raise InputError(f"unknown argument {name} (parameters here: {', '.join(sorted(known))})")
        try:
            parameters[name[2:]] = float(value)
        except ValueError:
            raise InputError(f"{name} is {value!r}, but must be a number") from None
    return parameters


if __name__ == "__main__":
    main()

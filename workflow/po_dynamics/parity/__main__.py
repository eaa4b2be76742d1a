"""Replays golden values of TRL through the production code: `python -m po_dynamics.parity DIR…`.

Every case below the given directories is replayed: `<case>.json` with `<case>.npz` are cases of TRL 1.12's PPOTrainer,
`a_logps_to_loss.npz` and `b_tiny_run.npz` with `meta.json` those of TRL 1.16's DPOTrainer. Prints the largest error per
quantity, |ours − golden| / max(1, |golden|); exits with status 1 beyond 1e-6 and where there is no case.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from po_dynamics.errors import InputError
from po_dynamics.parity.dpo import LOGPS, META, RUN, replay_dpo
from po_dynamics.parity.ppo import replay_ppo

TOLERANCE = 1e-6
Error = tuple[str, str, float]  # case, quantity, largest error


def replay(roots: Sequence[Path]) -> Iterator[Error]:
    """The errors of all cases below the directories; InputError for a directory that does not exist."""
    for root in roots:
        if not root.is_dir():
            raise InputError(f"{root} is not a directory")
        for directory in sorted({root, *(path for path in root.rglob("*") if path.is_dir())}):
            if (directory / LOGPS).is_file() or (directory / RUN).is_file():
                yield from replay_dpo(directory)
            if any(path.name != META and path.with_suffix(".npz").is_file() for path in directory.glob("*.json")):
                for case, quantity, error in replay_ppo(directory):
                    yield f"{directory}/{case}", quantity, error


def table(errors: Sequence[Error]) -> str:
    """One line per case and quantity, the worst marked when beyond the tolerance."""
    width = max(len(quantity) for _, quantity, _ in errors)
    lines, previous = [], None
    for case, quantity, error in errors:
        if case != previous:
            lines.append(case)
        mark = "" if error <= TOLERANCE else f"   > {TOLERANCE:g}"
        lines.append(f"  {quantity:<{width}}  {error:8.1e}{mark}")
        previous = case
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 where every case is within the tolerance."""
    parser = argparse.ArgumentParser(prog="python -m po_dynamics.parity", description=__doc__.split(":")[0])
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="searched for cases, at any depth")
    try:
        errors = list(replay(parser.parse_args(arguments).directories))
        if not errors:
            raise InputError(
                "no golden case found: looked for <case>.json with <case>.npz, a_logps_to_loss.npz, b_tiny_run.npz"
            )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(errors))
    cases, worst = len({case for case, _, _ in errors}), max(error for _, _, error in errors)
    verdict = "within" if worst <= TOLERANCE else "BEYOND"
    print(f"{cases} cases, {len(errors)} quantities, largest error {worst:.1e}: {verdict} {TOLERANCE:g}")
    return int(not worst <= TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())

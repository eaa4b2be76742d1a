"""The report: one HTML file that needs nothing else, from the tables, the figures and the provenance records."""

from __future__ import annotations

import base64
import datetime
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml
from PIL import Image

from po_dynamics.errors import InputError
from po_dynamics.figures import style
from po_dynamics.storage.atomic import atomic_file

TEMPLATE = Path(__file__).parents[2] / "report" / "report.html.j2"
_MODEL_FOLDERS = {"checkpoints", "base", "sft", "reward", "tokenizer", "state"}


def write_report(
    output: Path,
    *,
    experiment: str,
    config: Mapping[str, Any],
    runs: style.Runs,
    results: Path,
    win_rates: Path,
    figures: Sequence[Path],
    tables: Sequence[Path] = (),
    records: Iterable[Path] | None = None,
) -> None:
    """Writes the report, atomically.

    Args:
        output: the HTML file; links to tables and figures are relative to its folder.
        experiment: its name, for the title.
        config: what the run was configured with, shown in full.
        runs: run name → `objective`, `family`, `parameters`.
        results: the results table (CSV of `stats.results_table`).
        win_rates: `win_rates.csv`.
        figures: PNG files with `Title` and `Description` (see `style.save`), shown by folder and number; those called
            `training_*` go into a section of their own, folded away.
        tables: further tables to link to.
        records: provenance JSON files; by default every one below the report's folder.

    Raises:
        InputError: for a missing or empty table, or a figure that cannot be read.
    """
    result_rows, rates = _read(results), _read(win_rates)
    of_figures = [_figure(path, output.parent) for path in sorted(figures, key=_natural)]
    stages = _stages(_records(find_records(output.parent) if records is None else records))
    page = (
        _environment()
        .get_template(TEMPLATE.name)
        .render(
            experiment=experiment,
            models=[_model(name, rows, rates, runs) for name, rows in result_rows.groupby("model", sort=False)],
            judge=", ".join(map(str, rates["judge"].unique())),
            figures=[figure for figure in of_figures if not figure["training"]],
            training=[figure for figure in of_figures if figure["training"]],
            stages=stages,
            config=yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False, allow_unicode=True),
            files=_files([results, win_rates, *tables], figures, output.parent),
        )
    )
    with atomic_file(output) as temporary:
        temporary.write_text(page, encoding="utf-8")


def find_records(root: Path) -> list[Path]:
    """Provenance records below `root`, by name; folders of models hold none and are skipped."""
    found: list[Path] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name not in _MODEL_FOLDERS)
        found += [Path(folder) / name for name in names if name.endswith(".json")]
    return sorted(found)


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
    except (OSError, pd.errors.EmptyDataError) as error:
        raise InputError(f"{path}: {error}; write the table first") from None
    if table.empty:
        raise InputError(f"{path}: the table has no rows")
    return table


def _model(name: Any, rows: pd.DataFrame, rates: pd.DataFrame, runs: style.Runs) -> dict[str, Any]:
    """What the template shows of one model: headline numbers and the rows of its results table."""
    table: list[dict[Any, Any]] = rows.to_dict("records")
    records: list[dict[str, Any]] = [{k: None if pd.isna(v) else v for k, v in row.items()} for row in table]
    labels = style.run_labels([row["run"] for row in records], runs, with_objective=True)
    parents = style.run_labels([run for run in runs if runs[run]["objective"] in ("dpo", "ppo")], runs)
    for row in records:
        row["label"], row["parent"] = labels[row["run"]], parents.get(row["parent"], row["parent"])
    judged = rates[rates["model"] == name]
    detectable = [row["detectable"] for row in records if row["detectable"] is not None]
    judging: dict[str, Any] = {"detectable": (min(detectable), max(detectable)) if detectable else None}
    judging |= {"n_missing": int(judged["n_missing"].sum()), "order_consistency": judged["order_consistency"].min()}
    return {"name": name, "rows": records, "headline": _headline(records)} | judging


def _headline(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """SFT against base, and the uncontrolled runs against SFT, at their last checkpoints."""
    cards = []
    for row in rows:
        values = row["final"], row["final_low"], row["final_high"]
        if row["run"] == "base":
            values = 100 - values[0], 100 - values[2], 100 - values[1]
            cards.append({"title": "SFT over base", "of": "the SFT model's answers to the base model's", "std": None})
        elif row["objective"] in ("dpo", "ppo"):
            title = f"{row['label']} over SFT"
            cards.append({"title": title, "of": f"its answers at step {row['final_step']:,} to the SFT model's"})
            cards[-1] |= {"std": row["final_std"], "n_seeds": row["n_seeds"]}
        else:
            continue
        cards[-1] |= dict(zip(("value", "low", "high"), values, strict=True)) | {"n": row["n"]}
    return cards


def _figure(path: Path, root: Path) -> dict[str, Any]:
    try:
        with Image.open(path) as image:
            text, width = dict(getattr(image, "text", {})), image.width
    except OSError as error:
        raise InputError(f"figure {path}: {error}; draw it again") from None
    data = base64.b64encode(path.read_bytes()).decode()
    title, training = text.get("Title", path.stem), path.stem.startswith("training_")
    source = {"path": os.path.relpath(path, root), "data": data, "width": round(0.56 * width)}
    return {"title": title, "caption": text.get("Description", ""), "training": training} | source


def _natural(path: Path) -> tuple[str, list[tuple[int, str]]]:
    """By folder, then by name with numbers in their order: figure_2 before figure_10."""
    return str(path.parent), [
        (int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)
    ]


def _records(paths: Iterable[Path]) -> list[dict[str, Any]]:
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


def _stages(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
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


def _files(tables: Sequence[Path], figures: Sequence[Path], root: Path) -> list[dict[str, str]]:
    """(path relative to the report, what it is) of every file behind the page that exists."""
    rows = [(path, "table") for path in tables]
    for path in figures:
        rows += [(path, "figure"), (path.with_suffix(".pdf"), "the same figure for print")]
    return [{"path": os.path.relpath(path, root), "kind": kind} for path, kind in rows if path.exists()]


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "signed": _signed, "p": _p, "duration": _duration}
    return environment


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _signed(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:+,.{digits}f}".replace("-", "−")


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"

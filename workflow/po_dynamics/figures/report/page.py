"""The report: one HTML file that needs nothing else, from the tables, the figures and the provenance records."""

from __future__ import annotations

import base64
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
import yaml
from PIL import Image

from po_dynamics.errors import InputError
from po_dynamics.figures.labels import run_labels
from po_dynamics.figures.report.displacement import explained
from po_dynamics.figures.report.records import find_records, read_records, stages
from po_dynamics.objectives.families import Runs, is_uncontrolled, parent_of
from po_dynamics.storage.atomic import atomic_file

TEMPLATE = Path(__file__).parents[3] / "report" / "report.html.j2"
# Of figures; all but the first by the beginning of their names.
SECTIONS = ("figures", "prediction", "token", "displacement", "training")


class ExactBandit(NamedTuple):
    """Files of the exact bandit that the report shows."""

    figure: Path
    law: Path
    claims: Path


class DataTables(NamedTuple):
    """Tables about the data sets (CSV of `data.statistics`)."""

    counts: Path
    sources: Path
    overlaps: Path


class Displacement(NamedTuple):
    """Tables of "Why do both fall?"; the section is left out where they have no rows."""

    displacement: Path
    check: Path


class Target(NamedTuple):
    """Tables of the policies' distance to their target that the report shows."""

    distances: Path
    claims: Path


@dataclass(frozen=True)
class Contents:
    """What the report shows.

    Attributes:
        experiment: its name, for the title.
        config: what the run was configured with, shown in full.
        runs: what each run optimises.
        results: the results table (CSV of `stats.results_table`).
        win_rates: `win_rates.csv`.
        figures: PNG files with `Title` and `Description` (see `style.save`), shown by folder and number; those called
            `training_*` and `displacement_*` go into sections of their own, the first folded away.
        tables: further tables to link to.
        data: the section about the data sets; None: without.
        resolution: the table of which signs of G are known; None: without.
        bandit: the exact bandit's section; None: without.
        displacement: the tables of the section "Why do both fall?"; None: without.
        target: the section on the language models' distance to their target; None: without.
        judge_card: the judge's report card (CSV of `report_card`); None: without.
        records: provenance JSON files; by default every one below the report's folder.
    """

    experiment: str
    config: Mapping[str, Any]
    runs: Runs
    results: Path
    win_rates: Path
    figures: Sequence[Path]
    tables: Sequence[Path] = ()
    data: DataTables | None = None
    resolution: Path | None = None
    bandit: ExactBandit | None = None
    displacement: Displacement | None = None
    target: Target | None = None
    judge_card: Path | None = None
    records: Iterable[Path] | None = None


def write_report(output: Path, contents: Contents) -> None:
    """Writes the report, atomically; links to tables and figures are relative to its folder.

    Raises:
        InputError: for a missing or empty table, or a figure that cannot be read.
    """
    page = _environment().get_template(TEMPLATE.name).render(_shown(contents, output.parent))
    with atomic_file(output) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _shown(contents: Contents, root: Path) -> dict[str, Any]:
    """The variables of the template; `root` is the folder of the report."""
    results, rates = _read(contents.results), _read(contents.win_rates)
    figures = [_figure(path, root) for path in sorted(contents.figures, key=_by_number)]
    records = find_records(root) if contents.records is None else contents.records
    bandit, linked, drawn = contents.bandit, [*contents.tables, *(contents.data or ())], [*contents.figures]
    if contents.displacement:
        linked = [*linked, *contents.displacement]
    linked += [contents.judge_card] if contents.judge_card else []
    if bandit:
        linked, drawn = [*linked, bandit.law, bandit.claims], [*drawn, bandit.figure]
    linked += contents.target or ()
    linked += [contents.resolution] if contents.resolution else []
    return {
        "experiment": contents.experiment,
        "models": [_model(name, rows, rates, contents.runs) for name, rows in results.groupby("model", sort=False)],
        "judge": ", ".join(map(str, rates["judge"].unique())),
        **{name: [figure for figure in figures if figure["section"] == name] for name in SECTIONS},
        "signs": _signs(contents),
        "both_fall": _both_fall(contents),
        "data": contents.data and _data(contents.data),
        "judge_card": _marks(contents.judge_card) if contents.judge_card else [],
        "bandit": bandit and _bandit(bandit, root),
        "target": contents.target and _target(contents.target, contents.runs),
        "stages": stages(read_records(records)),
        "config": yaml.safe_dump(json.loads(json.dumps(contents.config)), sort_keys=False, allow_unicode=True),
        "files": _files([contents.results, contents.win_rates, *linked], drawn, root),
    }


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
    except (OSError, pd.errors.EmptyDataError) as error:
        raise InputError(f"{path}: {error}; write the table first") from None
    if table.empty:
        raise InputError(f"{path}: the table has no rows")
    return table


def _model(name: Any, rows: pd.DataFrame, rates: pd.DataFrame, runs: Runs) -> dict[str, Any]:
    """What the template shows of one model: headline numbers and the rows of its results table."""
    table: list[dict[Any, Any]] = rows.to_dict("records")
    records: list[dict[str, Any]] = [{k: None if pd.isna(v) else v for k, v in row.items()} for row in table]
    labels = run_labels([row["run"] for row in records], runs, with_objective=True)
    parents = run_labels([name for name, run in runs.items() if is_uncontrolled(run["objective"])], runs)
    trainings = {row["run"]: row["n_seeds"] for row in records}
    for row in records:
        row["uncontrolled"] = is_uncontrolled(row["objective"])
        row["compared"] = row["n_seeds"] + trainings.get(row["parent"], 0)
        row["label"], row["parent"] = labels[row["run"]], parents.get(row["parent"], row["parent"])
    judged = rates[rates["model"] == name]
    detectable = [row["detectable"] for row in records if row["detectable"] is not None]
    shown: dict[str, Any] = {"detectable": (min(detectable), max(detectable)) if detectable else None}
    shown["other_grid"] = [labels[run] for run in _with_another_grid(judged, runs)]
    shown["judging"] = [_judging(judge, of_judge) for judge, of_judge in judged.groupby("judge", sort=False)]
    return {"name": name, "rows": records, "headline": _headline(records)} | shown


def _judging(judge: Any, rates: pd.DataFrame) -> dict[str, Any]:
    """What the win rates of all checkpoints say of their judge; None where pairs were shown in one order only."""
    answered, asked = rates["n"].sum(), (rates["n"] + rates["n_missing"]).sum()
    consistency, first = rates["order_consistency"].dropna(), rates["first_slot"].dropna()
    return {
        "judge": judge,
        "n_missing": int(asked - answered),
        "missing": 100 * (asked - answered) / asked,
        "consistency": (consistency.mean(), consistency.min()) if len(consistency) else None,
        "first_slot": (first.mean(), first.min(), first.max()) if len(first) else None,
        "extrapolates": int(rates["length_extrapolates"].astype(bool).sum()),
        "checkpoints": len(rates),
    }


def _marks(card: Path) -> list[dict[Any, Any]]:
    """The marks that could be measured, with their names in words."""
    rows = _read(card).dropna(subset="value")
    return rows.assign(mark=rows["mark"].str.replace("_", " ")).to_dict("records")


def _with_another_grid(rates: pd.DataFrame, runs: Runs) -> list[str]:
    """The runs whose checkpoints, from where they start, are not those of their parent."""
    steps = {str(run): set(table["step"]) for run, table in rates.groupby("run")}
    found = []
    for run in filter(steps.__contains__, runs):
        parent, start = parent_of(run, runs), runs[run].get("init_step", 0)
        if parent in steps and steps[run] != {step for step in steps[parent] if step >= start}:
            found.append(run)
    return found


def _headline(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """SFT against base, and the uncontrolled runs against SFT, at their last checkpoints."""
    cards = []
    for row in rows:
        values = row["final"], row["final_low"], row["final_high"]
        if row["run"] == "base":
            values = 100 - values[0], 100 - values[2], 100 - values[1]
            cards.append({"title": "SFT over base", "of": "the SFT model's answers to the base model's", "std": None})
        elif row["uncontrolled"]:
            title = f"{row['label']} over SFT"
            cards.append({"title": title, "of": f"its answers at step {row['final_step']:,} to the SFT model's"})
            cards[-1] |= {"std": row["final_std"]}
        else:
            continue
        cards[-1] |= dict(zip(("value", "low", "high"), values, strict=True))
        cards[-1] |= {"n": row["n"], "n_seeds": row["n_seeds"]}
    return cards


def _figure(path: Path, root: Path) -> dict[str, Any]:
    try:
        with Image.open(path) as image:
            text, width = dict(getattr(image, "text", {})), image.width
    except OSError as error:
        raise InputError(f"figure {path}: {error}; draw it again") from None
    data = base64.b64encode(path.read_bytes()).decode()
    title, kind = text.get("Title", path.stem), path.stem.partition("_")[0]
    source = {"path": os.path.relpath(path, root), "data": data, "width": round(0.56 * width)}
    section = kind if kind in SECTIONS else "figures"
    return {"title": title, "caption": text.get("Description", ""), "section": section} | source


def _signs(contents: Contents) -> list[dict[str, Any]]:
    """Of every probed run, model by model: what is known of the signs of G, by component and set of final responses."""
    if contents.resolution is None:
        return []
    table = pd.read_csv(contents.resolution)
    labels = run_labels(list(dict.fromkeys(table["run"])), contents.runs, with_objective=True)
    rows: list[dict[Any, Any]] = table[table["filtered"]].to_dict("records")  # as the figures draw
    return [row | {"label": labels[row["run"]]} for row in rows]


def _both_fall(contents: Contents) -> list[dict[str, Any]]:
    """What the tables of displacement say of every run that they are of."""
    if contents.displacement is None:
        return []
    tables = contents.displacement
    return explained(pd.read_csv(tables.displacement), pd.read_csv(tables.check), contents.runs)


def _data(files: DataTables) -> dict[str, Any]:
    """Rows of every step with the reasons of those it leaves out, where the data come from, prompts that sets share."""
    counts = _read(files.counts).fillna({"model": ""})
    steps = []
    for (data_set, model, step), rows in counts.groupby(["data_set", "model", "step"], sort=False):
        reasons = dict(zip(rows["reason"], rows["rows"], strict=True))
        used, cut = reasons.pop("used"), reasons.pop("cut", 0)
        steps.append({"data_set": data_set, "model": model, "step": step, "used": used, "cut": cut, "dropped": reasons})
    overlaps = _read(files.overlaps)
    shared = overlaps[(overlaps["same_prompt"] > 0) | (overlaps["same_opening"] > 0)]
    sources = pd.read_csv(files.sources).astype(object)
    sources = sources.where(sources.notna(), None)  # none of a world
    return {"steps": steps, "overlaps": shared.to_dict("records"), "sources": sources.to_dict("records")}


def _bandit(files: ExactBandit, root: Path) -> dict[str, Any]:
    """The exact bandit's page, its claims, and of each of its cases the exponent and the steps at each τ, falling."""
    law = _read(files.law)
    steps = law.pivot_table(index=["objective", "variant", "coverage"], columns="tau", values="steps", sort=False)
    steps = steps.sort_index(axis=1, ascending=False)
    fitted = law.groupby(["objective", "variant", "coverage"], sort=False)[["exponent", "low", "high"]].first()
    rows = [
        {"case": case, "steps": steps.loc[case].tolist(), **fit}
        for case, fit in zip(fitted.index, fitted.to_dict("records"), strict=True)
    ]
    claims = _read(files.claims).to_dict("records")
    return {"figure": _figure(files.figure, root), "claims": claims, "taus": list(steps), "law": rows}


def _target(files: Target, runs: Runs) -> dict[str, Any]:
    """The claims, and of the SFT model and each training the last distance at every τ."""
    table = _read(files.distances)
    labels = run_labels(list(dict.fromkeys(table["run"])), runs, with_objective=True) | {"sft": "SFT model"}
    ends = table.sort_values("step").groupby(["tau", "model", "run", "seed"], sort=True).tail(1)
    rows = ends.sort_values(["tau", "model", "run", "seed"]).to_dict("records")
    return {"claims": _read(files.claims).to_dict("records"), "rows": [r | {"label": labels[r["run"]]} for r in rows]}


def _by_number(path: Path) -> tuple[str, list[tuple[int, str]]]:
    """By folder, then by name with numbers in their order: figure_2 before figure_10."""
    return str(path.parent), [
        (int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)
    ]


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
    environment.filters["is_finite"] = math.isfinite
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

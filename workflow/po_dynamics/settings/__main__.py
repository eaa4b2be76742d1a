"""Writes the JSON schema and the reference page of all keys: `python -m po_dynamics.settings`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from po_dynamics.settings.experiment import Configuration

ROOT = Path(__file__).parents[3]
COMMAND = "python -m po_dynamics.settings"
# Sections of the page by the key that they stand at, and the declarations that may stand there.
SECTIONS = {
    "": ("Configuration",),
    "data": ("WorldData", "HubData"),
    "data.<data set>": ("Dataset",),
    "models.<model>": ("Model",),
    "models.<model>.base": ("WorldBase", "HubBase"),
    "models.<model>.sft": ("Sft",),
    "models.<model>.reward": ("TrainedReward", "HubReward"),
    "models.<model>.offline": ("Offline",),
    "models.<model>.online": ("Online",),
    "models.<model>.resources.<stage>": ("Resources",),
    "runs.<run>": ("RunEntry",),
    "runs.<run>.init": ("Start",),
    "probe": ("Probe",),
    "probe.samples": ("ProbeSamples",),
    "probe.separate": ("ProbeSeparate",),
    "probe.batch_size": ("ProbeBatches",),
    "probe.final_sets": ("ProbeFinalSets",),
    "evaluation": ("Evaluation",),
    "evaluation.report_card": ("ReportCard",),
    "evaluation.judging": ("Calls",),
    "evaluation.judging.prices.<model>": ("Price",),
    "bandit": ("ExactBandit",),
    "target": ("Target",),
    "validation": ("Validation",),
    "validation.halves": ("Halves",),
}
INTRODUCTION = f"""<!-- Written by `{COMMAND}` from workflow/po_dynamics/settings/; edit there. -->

# Settings

Every key of a configuration. A configuration states what differs from the defaults; a key without a default must be
given. Unknown keys are refused. The settings of a run are those of its model's `offline` or `online` section with the
run's own `training` on top; all of them, defaults too, stand in the record beside its checkpoints (`params`).
"""


def schema() -> dict[str, Any]:
    """JSON schema of a configuration, for editors; what is checked beyond it says so when it fails."""
    titled = Configuration.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_untitled(titled)}


def page() -> str:
    """The reference page: a table per section."""
    definitions = schema()
    sections = definitions["$defs"] | {"Configuration": definitions}
    if missing := set(sections) - {name for names in SECTIONS.values() for name in names}:
        raise ValueError(f"SECTIONS does not say where {', '.join(sorted(missing))} stands")
    parts = [_section(key, sections[name]) for key, names in SECTIONS.items() for name in names]
    return "\n".join([INTRODUCTION, *parts])


def _untitled(node: Any, keys: bool = False) -> Any:
    """Without the titles that pydantic makes of names; the keys of `properties` are names themselves."""
    if isinstance(node, list):
        return [_untitled(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: _untitled(value, keys=key in ("properties", "$defs"))
        for key, value in node.items()
        if keys or key != "title"
    }


def _section(key: str, declared: dict[str, Any]) -> str:
    source = declared["properties"].get("source", {}).get("const")
    heading = (f"`{key}`" if key else "The whole") + (f", source: {source}" if source else "")
    rows = [
        f"| `{field}` | {_type(kind)} | {_default(field, kind, declared)} | {kind.get('description', '')} |"
        for field, kind in declared["properties"].items()
    ]
    table = ["| key | value | default | meaning |", "|---|---|---|---|", *rows]
    return "\n".join([f"## {heading}", "", declared["description"].strip(), "", *table, ""])


def _default(field: str, kind: dict[str, Any], declared: dict[str, Any]) -> str:
    if field in declared.get("required", []):
        return ""
    if "x-default" in kind:
        return f"that of `{kind['x-default']}`"
    if "$ref" in kind:
        return "its own"
    return f"`{json.dumps(kind.get('default', {}), ensure_ascii=False)}`"


def _type(kind: dict[str, Any]) -> str:
    """The values that a key may have, in words."""
    if choices := kind.get("oneOf", kind.get("anyOf")):
        return " or ".join(dict.fromkeys(map(_type, choices)))
    if "enum" in kind:
        return ", ".join(f"`{choice}`" for choice in kind["enum"])
    if "const" in kind:
        return f"`{kind['const']}`"
    if "$ref" in kind or kind["type"] == "object":
        return "section"
    if kind["type"] == "array":
        return f"list of {_type(kind['items'])}"
    return " ".join([kind["type"], *_bounds(kind)])


def _bounds(kind: dict[str, Any]) -> Iterator[str]:
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    bounds = [f"{sign} {kind[key]}" for key, sign in signs.items() if key in kind]
    if bounds:
        yield ", ".join(bounds)


def main() -> None:
    """Writes both files."""
    header = f"# Written by `{COMMAND}` from workflow/po_dynamics/settings/; edit there.\n"
    text = yaml.safe_dump(schema(), sort_keys=False, allow_unicode=True, width=120)
    (ROOT / "workflow/schemas/config.schema.yaml").write_text(header + text, encoding="utf-8")
    (ROOT / "docs/settings.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()

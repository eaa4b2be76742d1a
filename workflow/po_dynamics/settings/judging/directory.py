"""Directories that describe a judge: found, read and checked without importing what they name.

A judge is an alpaca-eval annotator directory (`configs.yaml` and a template). `fn_completions` is a "module:function"
or the name of a decoder of alpaca-eval, of which `openai_completions` is replaced by our client. Beyond what
alpaca-eval reads there, an optional mapping `po_dynamics` may set

* `encoding: json`: instruction and outputs reach the template as JSON, an output as `[response, ended]`; otherwise as
  plain text (default);
* `cache: false`: do not keep the answers on disk while judging (for judges that cost nothing).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from po_dynamics.errors import InputError
from po_dynamics.settings.judging.calls import Calls, is_address

JUDGES = Path(__file__).parents[3] / "judges"
PACKAGE = __name__.partition(".")[0]
REMOTE = f"{PACKAGE}.judging.remote:answering"  # named, as a configuration names it: settings import nothing above
OWN = {"encoding": ("text", "json"), "cache": (True, False)}
# Arguments of alpaca-eval's decoders that would put a key into a file.
SECRET = ("api_key", "openai_api_key", "openai_api_keys", "openai_organization_ids", "client_kwargs", "extra_headers")


@dataclass(frozen=True)
class Judge:
    """An annotator directory, checked, with what the configuration sets of it."""

    directory: Path
    name: str
    function: str  # "module:function", or a decoder of alpaca-eval
    parameters: Mapping[str, Any]  # of the function: its model and how that is asked
    template: str
    annotator: Mapping[str, Any]  # as alpaca-eval reads it
    encoding: str
    cache: bool
    digest: str  # of all that a verdict depends on

    @property
    def remote(self) -> bool:
        """Whether it is asked through our client, so that answers are kept for good."""
        return self.function == REMOTE

    @property
    def world(self) -> bool:
        """Whether it knows the embedded world and nothing else."""
        return self.function.startswith(f"{PACKAGE}.world.")

    @property
    def in_process(self) -> bool:
        """Whether it loads a model here."""
        return self.function.startswith(f"{PACKAGE}.judging.") and not self.remote


def find_judge(judge: str | Path, calls: Calls | None = None) -> Judge:
    """Finds a judge: a directory, a name in `workflow/judges/`, or one of those that alpaca-eval ships.

    Raises:
        InputError: there is none, or its configs.yaml cannot be used.
    """
    directory = _directory(judge)
    path = directory / "configs.yaml"
    name, annotator = _annotator(path)
    own = {"encoding": "text", "cache": True, **(annotator.pop("po_dynamics", None) or {})}
    if set(own) != set(OWN) or any(own[key] not in allowed for key, allowed in OWN.items()):
        raise InputError(
            f"judge {path}: po_dynamics is {own}; it takes encoding (text or json) and cache (true or false)"
        )
    parameters = _parameters(path, annotator, calls or Calls())
    function = str(annotator.get("fn_completions", "openai_completions"))
    function = REMOTE if function == "openai_completions" else function
    template = _template(path, annotator)
    about = [name, annotator, own["encoding"], function, parameters, template]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
    return Judge(directory, name, function, parameters, template, annotator, own["encoding"], own["cache"], digest)


def check_judge(judge: Judge, calls: Calls, source: str) -> None:
    """Refuses, before anything runs, a judge that cannot judge the data of `source` or cannot be paid as configured.

    Raises:
        InputError: naming the key of the configuration.
    """
    if judge.world and source != "world":
        raise InputError(
            f"configuration key 'evaluation.judge' is '{judge.directory.name}', which knows the embedded world only, "
            f"and data.source is {source}; take a language model, for instance openai (docs/judges.md)"
        )
    model = judge.parameters.get("model_name")
    if (judge.remote or judge.in_process) and not model:
        raise InputError(
            f"configuration key 'evaluation.judging.model' is missing: judge '{judge.name}' names no model"
        )
    if judge.remote and calls.max_usd is not None and model not in calls.prices:
        raise InputError(
            f"configuration key 'evaluation.judging.max_usd' is {calls.max_usd}, but evaluation.judging.prices has no "
            f"price of {model}; state it, or use max_requests"
        )


def _directory(judge: str | Path) -> Path:
    spec = importlib.util.find_spec("alpaca_eval")
    shipped = Path(spec.origin).parent / "evaluators_configs" if spec and spec.origin else None
    for candidate in (Path(judge), JUDGES / judge, *([shipped / judge] if shipped else [])):
        if (candidate / "configs.yaml").is_file():
            return candidate.resolve()
    ours = ", ".join(sorted(path.parent.name for path in JUDGES.glob("*/configs.yaml")))
    raise InputError(
        f"judge '{judge}': no such directory with a configs.yaml; give a path, one of workflow/judges/ ({ours}) "
        "or a name that alpaca-eval ships"
    )


def _annotator(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"judge {path}: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict) or len(config) != 1 or not all(isinstance(c, dict) for c in config.values()):
        raise InputError(f"judge {path}: it must hold exactly one annotator, a mapping under its name")
    ((name, annotator),) = config.items()
    return str(name), dict(annotator)


def _parameters(path: Path, annotator: Mapping[str, Any], calls: Calls) -> dict[str, Any]:
    """The directory's parameters, with the configuration's model and endpoint."""
    parameters = dict(annotator.get("completions_kwargs") or {})
    if secret := [key for key in parameters if key in SECRET]:
        raise InputError(
            f"judge {path}: completions_kwargs has {secret[0]}; keys stand in no file: evaluation.judging.key names "
            "the environment variable that holds it"
        )
    if not is_address(str(parameters.get("base_url", "http://none"))):
        raise InputError(
            f"judge {path}: base_url must be an address like http://127.0.0.1:8000/v1, without password or query"
        )
    if calls.model is not None:
        parameters["model_name"] = calls.model
    if calls.endpoint is not None:
        parameters["base_url"] = calls.endpoint
    return parameters


def _template(path: Path, annotator: Mapping[str, Any]) -> str:
    template = path.parents[1] / str(annotator.get("prompt_template"))
    if not template.is_file():
        raise InputError(f"judge {path}: prompt_template names {template}, and there is no such file")
    return template.read_text(encoding="utf-8")

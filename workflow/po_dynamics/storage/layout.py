"""Where the workflow's files lie: every path of `results/` is stated here once.

A pattern names its wildcards in braces, as Snakemake's do. The rules build paths from it, `parse` reads them back.
"""

from __future__ import annotations

import re
from pathlib import Path

from po_dynamics.errors import InputError

EXPERIMENT = "results/{experiment}"
CONFIGURATION = EXPERIMENT + "/config.yaml"
REPORT = EXPERIMENT + "/report.html"
DATA = EXPERIMENT + "/data"
LOGS = EXPERIMENT + "/logs"
JUDGE = EXPERIMENT + "/judge.json"  # what is known of the judge before anything is trained
LEDGERS = EXPERIMENT + "/judgements"  # answers of a remote judge
TABLES = EXPERIMENT + "/tables"
EXAMINATION = EXPERIMENT + "/examination"
JUDGED_PAIRS = EXAMINATION + "/judged.json"
FIGURES = EXPERIMENT + "/figures/{model}"
BANDIT_FIGURE = EXPERIMENT + "/figures/bandit"  # of no model
VALIDATION_FIGURES = EXPERIMENT + "/figures/validation_{figure}"

MODEL = EXPERIMENT + "/{model}"
MODEL_LOGS = LOGS + "/{model}"
STAGE = MODEL + "/{stage}"  # base, sft or reward
BASE = MODEL + "/base"
SFT = MODEL + "/sft"
REWARD = MODEL + "/reward"
PUBLISHED_REWARD = MODEL + "/published_reward"
PREFERENCES = MODEL + "/preferences.parquet"
PREFERENCE_REWARDS = MODEL + "/rewards.parquet"
TOKENS = MODEL + "/tokens/{data_set}.arrow"
REFERENCE = MODEL + "/reference/{init}.parquet"
TARGET_SAMPLES = MODEL + "/target.parquet"
MODEL_STATE = MODEL + "/state"
STAGE_EVALUATION = MODEL + "/evaluation/{stage}"

RUN = MODEL + "/{run}/seed{seed}"
RUN_LOGS = MODEL_LOGS + "/{run}/seed{seed}"
CHECKPOINTS = RUN + "/checkpoints"
CURVES = RUN + "/training.csv"
STATE = RUN + "/state"
FINAL_RESPONSES = RUN + "/final_responses/{final_set}.parquet"
PROBE_CHUNK = RUN + "/probe_chunks/{final_set}/{chunk}"
PROBE = RUN + "/probe/{final_set}"
PROBED_STEP = PROBE + "/step-{step}"
WITHOUT = RUN + "/validation/without_from-{step}"  # an interval trained again, with and without each component
HALVES = RUN + "/validation/halves_{chunk}"  # trainings on random halves of the pairs
EVALUATION = RUN + "/evaluation/{chunk}"

RESPONSES = "/responses.parquet"  # of an evaluation
ANNOTATIONS = "/annotations.parquet"


def record(path: str) -> str:
    """The provenance record beside an artefact."""
    return f"{path}.json"


def ledger(experiment: str, model: str, path: str) -> str:
    """The ledger of a judging job; `path` is the evaluation's folder below its model's."""
    return f"{LEDGERS.format(experiment=experiment)}/{model}/{path}.jsonl"


def parse(path: Path | str, *patterns: str) -> dict[str, str]:
    """The wildcards of a path that one of the patterns made.

    Raises:
        InputError: a path of another form.
    """
    for pattern in patterns:
        match = re.fullmatch(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(pattern)), str(path))
        if match is not None:
            return match.groupdict()
    raise InputError(f"{path} is not of the form {' or '.join(patterns)}; run the workflow from the repository's root")


def find(pattern: str, experiment: Path) -> list[tuple[dict[str, str], Path]]:
    """What is there of `pattern` below an experiment's folder, wherever that lies: wildcards and path."""
    below = pattern.removeprefix(f"{EXPERIMENT}/")
    found = experiment.glob(re.sub(r"\{\w+\}", "*", below))
    return [(parse(path.relative_to(experiment), below), path) for path in sorted(found)]

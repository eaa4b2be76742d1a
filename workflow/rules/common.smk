"""Configuration, paths and the rule of staleness that every stage shares. Nothing heavy is imported here."""

import os
import re
import sys
from pathlib import Path

from snakemake.settings.types import RerunTrigger

WORKFLOW = Path(workflow.basedir) / "workflow"
# Scripts find the package in whatever environment they run.
sys.path.insert(0, str(WORKFLOW))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(WORKFLOW), os.environ.get("PYTHONPATH")]))

from po_dynamics import config as configuration
from po_dynamics.errors import InputError
from po_dynamics.fingerprint import fingerprint

# Snakemake compares a script by modification time, which a clone, a copy or `touch` changes, and does not see the
# modules it imports: `params.code` tracks both by content, and Snakemake's own comparison is switched off for good.
type(workflow).rerun_triggers = property(
    lambda self: frozenset(self.dag_settings.rerun_triggers) - {RerunTrigger.CODE}
)

try:
    EXPERIMENT = configuration.load(config)
except InputError as error:
    sys.exit(f"error: {error}")

MODELS = config["models"]
RUNS = EXPERIMENT.runs


def code(script):
    """Fingerprint of a script of workflow/scripts and of every module of the package that it imports."""
    return fingerprint(WORKFLOW / "scripts" / script)


def run_of(wildcards):
    """The resolved run; rules are only asked for runs of the configuration."""
    return RUNS[wildcards.model, wildcards.run]


def names(values):
    """Regular expression of exactly these wildcard values (of none, if there are none)."""
    return "|".join(map(re.escape, values)) or r"(?!)"


def gpus(wildcards):
    """Graphics cards of a job: none for the embedded world's models."""
    return 0 if MODELS[wildcards.model]["base"]["source"] == "world" else 1


def artefact(path):
    """Another stage's file or folder as an input, with the provenance record beside it.

    Snakemake compares folders and large files by time, small files by content. So the artefact itself is `ancient`,
    and its record, written anew by every run of its rule, decides whether it changed.
    """
    return [ancient(path), f"{path}.json"]


def initial(wildcards):
    """The model that a run's reference log-probs and KL are about: the SFT model, or the base model without SFT."""
    return artefact(f"results/{wildcards.experiment}/{wildcards.model}/{run_of(wildcards).init}")


def seeds(family=None, probed=None):
    """(model, run, seed) of every trained run, or of those of one family, or of those that are probed."""
    return [
        (run.model, run.name, seed)
        for run in RUNS.values()
        for seed in run.seeds
        if family in (None, run.family) and probed in (None, run.probe)
    ]


wildcard_constraints:
    experiment=re.escape(config["experiment"]),
    model=names(MODELS),
    run=names(sorted({name for _, name in RUNS})),
    seed=r"\d+",
    init="sft|base",
    stage="sft|base",
    final_set="heldout|train",
    chunk=r"\d+",

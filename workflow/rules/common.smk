"""Configuration, paths and the rule of staleness that every stage shares. Nothing heavy is imported here."""

import os
import re
import sys
from pathlib import Path

from snakemake.settings.types import RerunTrigger

WORKFLOW = Path(workflow.basedir) / "workflow"
# Scripts find the package in whatever environment they run.
sys.path.insert(0, str(WORKFLOW))
os.environ.update(PYTHONPATH=os.pathsep.join(filter(None, [str(WORKFLOW), os.getenv("PYTHONPATH")])))

from po_dynamics.errors import InputError
from po_dynamics.harness import config as configuration
from po_dynamics.harness.fingerprint import fingerprint, objective_fingerprint

# Snakemake compares a script by modification time, which a clone, a copy or `touch` changes, and does not see the
# modules it imports: `params.code` tracks both by content, and Snakemake's own comparison is switched off for good.
type(workflow).rerun_triggers = property(lambda self: frozenset(self.dag_settings.rerun_triggers) - {RerunTrigger.CODE})

try:
    EXPERIMENT = configuration.load(config)
except InputError as error:
    sys.exit(f"error: {error}")

config = EXPERIMENT.config  # with all defaults; rules see nothing else
MODELS = config["models"]
RUNS = EXPERIMENT.runs


def code(script):
    """Fingerprint of a script of workflow/scripts and of every module of the package that it imports."""
    return fingerprint(WORKFLOW / "scripts" / script)


def objective_code(wildcards):
    """Fingerprint of the run's own objective; a new one reruns nothing that exists."""
    return objective_fingerprint(run_of(wildcards).objective.name)


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


def initial_model(wildcards):
    """Where a run starts: the SFT model, the base model, or a checkpoint of another run of the same seed."""
    run = run_of(wildcards)
    if run.init_run:
        root = f"results/{wildcards.experiment}/{wildcards.model}"
        return artefact(f"{root}/{run.init_run}/seed{wildcards.seed}/checkpoints")
    return initial(wildcards)


def reference_logps(wildcards):
    return artefact(f"results/{wildcards.experiment}/{wildcards.model}/reference/{run_of(wildcards).init}.parquet")


def training(wildcards):
    """What a training job must be told, and what makes its result stale."""
    run = run_of(wildcards)
    return {
        "objective": {"name": run.objective.name, "parameters": run.objective.parameters},
        "settings": {**run.settings, "checkpoints": run.steps},
        "first_step": run.init_step,
        "seed": int(wildcards.seed),
    }


def checkpoints(path):
    return directory(path) if config["keep_checkpoints"] else temp(directory(path))


def steps_of_chunk(wildcards):
    return EXPERIMENT.chunks(wildcards.model, wildcards.run)[int(wildcards.chunk)]


def reward_of_rollouts(wildcards):
    """Online runs are probed on fresh roll-outs, which the reward model scores; offline runs need none."""
    online = run_of(wildcards).family == "online"
    return artefact(f"results/{wildcards.experiment}/{wildcards.model}/reward") if online else []


def probe_chunks(wildcards):
    chunks = range(len(EXPERIMENT.chunks(wildcards.model, wildcards.run)))
    root = f"results/{wildcards.experiment}/{wildcards.model}/{wildcards.run}/seed{wildcards.seed}/probe_chunks"
    return sum((artefact(f"{root}/{wildcards.final_set}/{chunk}") for chunk in chunks), [])


def probed():
    """Probe tables of every probed run, seed and set of final responses."""
    root = f"results/{config['experiment']}"
    return [
        path
        for model, run, seed in seeds(probed=True)
        for final_set in config["probe"]["final_sets"][RUNS[model, run].family]
        for path in artefact(f"{root}/{model}/{run}/seed{seed}/probe/{final_set}")
    ]


def evaluated(table):
    """`responses` or `annotations` of the base model and of every run, seed and chunk of checkpoints."""
    root = f"results/{config['experiment']}"
    bases = [f"{root}/{model}/evaluation/base/{table}.parquet" for model in MODELS]
    chunks = [
        f"{root}/{model}/{run}/seed{seed}/evaluation/{chunk}/{table}.parquet"
        for model, run, seed in seeds()
        for chunk in range(len(EXPERIMENT.chunks(model, run)))
    ]
    return sum(map(artefact, bases + chunks), [])


def figure_files(wildcards):
    """Every figure of the experiment in the order of the report: the paper's, then the training curves."""
    root = f"results/{config['experiment']}/figures"
    final_sets = config["probe"]["final_sets"]
    offline = sorted({(model, run) for model, run, _ in seeds("offline", probed=True)})
    online = sorted({(model, run) for model, run, _ in seeds("online", probed=True)})
    return (
        [f"{root}/{model}/figure_1_{run}.png" for model, run in offline]
        + [f"{root}/{model}/figure_{number}_{run}.png" for number in (2, 3) for model, run in online]
        + [f"{root}/{model}/figure_4.png" for model in MODELS]
        + [f"{root}/{model}/figure_7_{run}.png" for model, run in offline if "train" in final_sets["offline"]]
        + [f"{root}/{model}/prediction_{run}.png" for model, run in offline + online]
        + [f"{root}/{model}/training_{run}.png" for model, run in dict.fromkeys(seed[:2] for seed in seeds())]
    )


wildcard_constraints:
    experiment=re.escape(config["experiment"]),
    model=names(MODELS),
    run=names(sorted({name for _, name in RUNS})),
    seed=r"\d+",
    init="sft|base",
    stage="sft|base",
    final_set="heldout|train",
    chunk=r"\d+",

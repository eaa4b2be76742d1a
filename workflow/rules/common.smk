"""Configuration, inputs and the rule of staleness that every stage shares. Nothing heavy is imported here."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import RerunTrigger

WORKFLOW = Path(workflow.basedir) / "workflow"
# Scripts find the package in whatever environment they run.
sys.path.insert(0, str(WORKFLOW))
os.environ.update(PYTHONPATH=os.pathsep.join(filter(None, [str(WORKFLOW), os.getenv("PYTHONPATH")])))

from po_dynamics.errors import InputError
from po_dynamics.figures.registry import drawings
from po_dynamics.harness import config as configuration
from po_dynamics.harness import content
from po_dynamics.harness import resources as demand
from po_dynamics.harness.fingerprint import fingerprint, module_fingerprint, objective_fingerprint
from po_dynamics.settings.judging.directory import find_judge
from po_dynamics.storage import layout

# Snakemake compares a script by modification time, which a clone, a copy or `touch` changes, and does not see the
# modules it imports: `params.code` tracks both by content, and Snakemake's own comparison is switched off for good.
type(workflow).rerun_triggers = property(lambda self: frozenset(self.dag_settings.rerun_triggers) - {RerunTrigger.CODE})

try:
    EXPERIMENT = configuration.load(config)
except InputError as error:
    sys.exit(f"error: {error}")

CONFIG = EXPERIMENT.config  # the resolved configuration: with every default
MODELS = CONFIG["models"]
JUDGE = EXPERIMENT.judge
RUNS = EXPERIMENT.runs
DATA_SETS = ("sft", "preferences", "final_prompts", "eval_prompts")
DRAWINGS = drawings(RUNS.values())  # by model and file name

fingerprint_once = functools.cache(fingerprint)
objective_fingerprint_once = functools.cache(objective_fingerprint)


def code(script, *functions):
    """Fingerprint of a script, of the "module:function"s that its parameters name, and of all that they import.

    Computed when the first job asks for it: most processes that read this file run one job.
    """
    return lambda wildcards: fingerprint_once(WORKFLOW / "scripts" / script, *functions)


def objective(run):
    """The run's objective as a job is told of it."""
    return {"name": run.objective.name, "parameters": run.objective.parameters}


def objective_code(wildcards):
    """Fingerprint of the run's own objective; a new one reruns nothing that exists."""
    return objective_fingerprint_once(objective(run_of(wildcards))["name"])


def run_of(wildcards):
    """The resolved run; rules are only asked for runs of the configuration."""
    return RUNS[wildcards.model, wildcards.run]


def names(values):
    """Regular expression of exactly these wildcard values (of none, if there are none)."""
    return "|".join(map(re.escape, values)) or r"(?!)"


def needs(stage, resource):
    """`gpu`, `mem_mb` or `runtime` of a job: from the size of its model, or as the configuration says."""
    devices = demand.Devices(CONFIG["device_memory_gb"], CONFIG["devices_per_node"])

    def asked(wildcards):
        settings = run_of(wildcards).settings if stage in ("offline", "online") else None
        return demand.of(MODELS[wildcards.model], stage, devices, settings)[resource]

    return asked


def artefacts(**patterns):
    """Other stages' files and folders as named inputs, each with its provenance record as `<name>_record`.

    Snakemake compares folders and large files by time, small files by content. So an artefact itself is `ancient`,
    and its record, written anew by every run of its rule, decides whether it changed. A pattern may be a list, or a
    function of the wildcards; None leaves the input out.
    """

    def inputs(wildcards):
        found = {name: pattern(wildcards) if callable(pattern) else pattern for name, pattern in patterns.items()}
        found = {name: path for name, path in found.items() if path is not None}
        paths = {name: list(map(ancient, p)) if isinstance(p, list) else ancient(p) for name, p in found.items()}
        return paths | {
            f"{name}_record": list(map(layout.record, p)) if isinstance(p, list) else layout.record(p)
            for name, p in found.items()
        }

    return inputs


def of_experiment(pattern, **wildcards):
    """A path of this experiment."""
    return pattern.format(experiment=CONFIG["experiment"], **wildcards)


def rows(wildcards):
    """Where a model's rows of a data set lie: the world's preferences are its own, all others of the experiment."""
    own = CONFIG["data"]["source"] == "world" and wildcards.data_set == "preferences"
    return layout.PREFERENCES if own else layout.DATA


def tokens(data_set):
    """The rows of a data set as every stage of a model reads them."""
    return layout.TOKENS.replace("{data_set}", data_set)


def final_prompts(wildcards):
    """What the final responses answer: held-out prompts, or those of the preferences."""
    return tokens("final_prompts" if wildcards.final_set == "heldout" else "preferences")


def lengths(model):
    """What bounds the rows that each use of a model's data takes, in tokens; null: its context."""
    of_uses = {name: model[name]["max_length"] for name in ("sft", "offline")}
    of_uses |= {"reward": model["reward"]["max_length"]} if model["reward"]["source"] == "train" else {}
    return of_uses | {"online": model["online"]["max_prompt_length"], "new": CONFIG["evaluation"]["max_new_tokens"]}


def initial(wildcards):
    """The model that a run's reference log-probs and KL are about: the SFT model, or the base model without SFT."""
    return layout.BASE if run_of(wildcards).init == "base" else layout.SFT


def initial_model(wildcards):
    """Where a run starts: the SFT model, the base model, or a checkpoint of another run of the same seed."""
    parent = run_of(wildcards).init_run
    return layout.CHECKPOINTS.replace("{run}", parent) if parent else initial(wildcards)


def reference_logps(wildcards):
    return layout.REFERENCE.replace("{init}", run_of(wildcards).init)


def preference_rewards(wildcards):
    """Rewards of the pairs, for runs whose objective needs them."""
    return layout.PREFERENCE_REWARDS if "rewards" in run_of(wildcards).objective.needs else None


def scoring_function(wildcards):
    """The "module:function" that scores pairs, if the configuration names one."""
    return MODELS[wildcards.model]["preference_rewards"]


def scoring_model(wildcards):
    return None if scoring_function(wildcards) else layout.REWARD


def named_code(function):
    """What a "module:function" of the configuration depends on: the code behind a module of ours, else its file."""
    name = function.partition(":")[0]
    return module_fingerprint(name) or content.of_module(name)


def scoring_code(wildcards):
    """Of the function that scores pairs, if there is one; the reward model's code is the script's."""
    return named_code(scoring_function(wildcards) or "")


def target_function(wildcards):
    """The "module:function" whose target policies are compared with, if the configuration names one."""
    return CONFIG["target"]["reward"] or scoring_function(wildcards)


def target_model(wildcards):
    return None if target_function(wildcards) else layout.REWARD


def target_code(wildcards):
    return named_code(target_function(wildcards) or "")


def seeds(family=None, probed=None):
    """(model, run, seed) of every trained run, or of those of one family, or of those that are probed."""
    return [
        (run.model, run.name, seed)
        for run in RUNS.values()
        for seed in run.seeds
        if family in (None, run.family) and probed in (None, bool(run.final_sets))
    ]


# (run, seed) of the trainings that are compared with their target, by model.
TARGET_TRAININGS = {
    model: [(run.name, seed) for run in RUNS.values() if run.target and run.model == model for seed in run.seeds]
    for model in dict.fromkeys(run.model for run in RUNS.values() if run.target)
}


def target_checkpoints(wildcards):
    return [
        of_experiment(layout.CHECKPOINTS, model=wildcards.model, run=run, seed=seed)
        for run, seed in TARGET_TRAININGS[wildcards.model]
    ]


def target_steps(wildcards):
    """Checkpoints that are sampled, by run; at step 0 every run is the reference."""
    runs = dict.fromkeys(run for run, _ in TARGET_TRAININGS[wildcards.model])
    return {run: [step for step in RUNS[wildcards.model, run].steps if step > 0] for run in runs}


def runs_of(family):
    """Regular expression of the names of a family's runs."""
    return names(sorted({run.name for run in RUNS.values() if run.family == family}))


def training(wildcards):
    """What a training job must be told, and what makes its result stale."""
    run = run_of(wildcards)
    return {
        "objective": objective(run),
        "settings": {**run.settings, "checkpoints": run.steps},
        "first_step": run.init_step,
        "seed": int(wildcards.seed),
    }


def learning(run):
    """Optimizer steps of the policy in a row of training.csv, and the rows at the beginning in which it has none."""
    if run.family == "offline":
        return {"steps_per_row": 1, "idle": 0}
    steps = run.settings["epochs"] * run.settings["mini_batches"]
    return {"steps_per_row": steps, "idle": run.settings["critic_warmup_steps"]}


def checkpoints(path):
    return directory(path) if CONFIG["keep_checkpoints"] else temp(directory(path))


def steps_of_chunk(wildcards):
    return EXPERIMENT.chunks(wildcards.model, wildcards.run)[int(wildcards.chunk)]


def probe_chunks(wildcards):
    chunks = range(len(EXPERIMENT.chunks(wildcards.model, wildcards.run)))
    return [layout.PROBE_CHUNK.replace("{chunk}", str(chunk)) for chunk in chunks]


def probed(wildcards):
    """Probe tables of every probed run, seed and set of final responses."""
    return [
        of_experiment(layout.PROBE, model=model, run=run, seed=seed, final_set=final_set)
        for model, run, seed in seeds(probed=True)
        for final_set in RUNS[model, run].final_sets
    ]


def evaluated(table):
    """`layout.RESPONSES` or `ANNOTATIONS` of the base model and of every run, seed and chunk of checkpoints."""
    return [of_experiment(layout.STAGE_EVALUATION + table, model=model, stage="base") for model in MODELS] + [
        of_experiment(layout.EVALUATION + table, model=model, run=run, seed=seed, chunk=chunk)
        for model, run, seed in seeds()
        for chunk in range(len(EXPERIMENT.chunks(model, run)))
    ]


def baselines():
    """The SFT models' responses, against which all others are judged."""
    return [of_experiment(layout.STAGE_EVALUATION + layout.RESPONSES, model=model, stage="sft") for model in MODELS]


def last_answers(wildcards):
    """Responses of the last checkpoints of every run, and of the base and SFT models."""
    stages = [
        of_experiment(layout.STAGE_EVALUATION + layout.RESPONSES, model=model, stage=stage)
        for model in MODELS
        for stage in ("base", "sft")
    ]
    return stages + [
        of_experiment(
            layout.EVALUATION + layout.RESPONSES,
            model=model,
            run=run,
            seed=seed,
            chunk=len(EXPERIMENT.chunks(model, run)) - 1,
        )
        for model, run, seed in seeds()
    ]


def figure_files(wildcards):
    """Every figure of the experiment."""
    folder = {model: of_experiment(layout.FIGURES, model=model) for model in MODELS}
    return [f"{folder[model]}/{figure}.png" for model, figure in DRAWINGS]


def probing(function):
    """The parameters of a probe whose samples `function` draws."""
    return {
        "function": function,
        "code": code("probe.py", function),
        "objective_code": objective_code,
        "steps": steps_of_chunk,
        "training": training,
        "probe": CONFIG["probe"],
        "state": f"{layout.STATE}/probe_{{final_set}}_{{chunk}}",
    }


def settings_of(part):
    """The settings of one part of the job's model."""
    return lambda wildcards: MODELS[wildcards.model][part]


def published(part):
    """What decides what a download of a published model brings."""
    return lambda wildcards: {key: MODELS[wildcards.model][part][key] for key in ("name", "revision", "sha256")}


def content_of(part):
    """What lies in a model that is not on the hub but here."""
    return lambda wildcards: content.of_path(MODELS[wildcards.model][part]["name"])


def described(run):
    """What a table or figure must know of a run."""
    about = objective(run)
    named = {"objective": about["name"], "family": run.family, "parameters": about["parameters"]}
    return named | {"init_step": run.init_step}


def drawing(wildcards):
    """What the registry of figures says about a figure."""
    return DRAWINGS[wildcards.model, wildcards.figure]


def drawn_from(wildcards):
    """Tables of a figure, named as the arguments of its function; the records of what wrote them decide."""
    figure, model, run = drawing(wildcards)
    found = {Path(name).stem: ancient(f"{layout.TABLES}/{name}") for name in figure.tables}
    # Rules that write several tables have the record of the first.
    others = {"win_rates.csv": WIN_RATES, "results.csv": WIN_RATES, "target.csv": TARGET}
    records = {others.get(name, DYNAMICS) for name in figure.tables}
    for name in figure.of_seeds:
        files = f"{layout.RUN}/{name}".replace("{run}", run)
        found[Path(name).stem] = [files.replace("{seed}", str(seed)) for seed in RUNS[model, run].seeds]
    return found | {"tables_record": sorted(map(layout.record, records))}


def told(wildcards):
    """The arguments of a figure's function that are no tables; a figure of one run is told of that run only."""
    run = drawing(wildcards).run
    runs = {run: DESCRIBED[run]} if run else DESCRIBED
    return drawing(wildcards).arguments | {"model": wildcards.model, "runs": runs}


def without(wildcards):
    """The objectives of an interval that is trained again: the run's own (TOT), and without each component."""
    own = objective(run_of(wildcards))
    damped = {name: own["parameters"] | {name.lower(): 0.0} for name in ("POS", "NEG", "TOP", "MID", "BOT")}
    return {"TOT": own} | {
        name: {"name": f"{own['name']}_damped", "parameters": parameters} for name, parameters in damped.items()
    }


def retraining(function):
    """The parameters of an interval that is trained again by `function`."""
    return {
        "function": function,
        "code": code("retrain_without.py", function),
        "objective_code": lambda wildcards: {
            one["name"]: objective_fingerprint_once(one["name"]) for one in without(wildcards).values()
        },
        "objectives": without,
        "training": training,
        "last_step": lambda wildcards: EXPERIMENT.next_step(wildcards.model, wildcards.run, int(wildcards.step)),
        "judge": CONFIG["evaluation"]["judge"],
        "digest": JUDGE.digest,
        "judge_code": judge_code,
        "responses": {"max_new_tokens": CONFIG["evaluation"]["max_new_tokens"]},
        "state": f"{layout.STATE}/without_from-{{step}}",
    }


def left_out():
    """(model, run, seed, step) of every checkpoint from which an interval is trained again."""
    return [
        (model, run, seed, step)
        for model, run, seed in seeds()
        for step in CONFIG["validation"]["left_out"].get(run, [])
    ]


def retrained(wildcards):
    return [
        of_experiment(layout.WITHOUT, model=model, run=run, seed=seed, step=step)
        for model, run, seed, step in left_out()
    ]


def intervals(wildcards):
    """Where each of `retrained` ends, and how many optimizer steps a row of its training.csv is."""
    found = []
    for model, run, _, step in left_out():
        settings = RUNS[model, run].settings
        updates = settings["epochs"] * settings["mini_batches"] if RUNS[model, run].family == "online" else 1
        found.append({"next_step": EXPERIMENT.next_step(model, run, step), "updates": updates})
    return found


def full_trainings():
    """(model, run, seed) of the trainings whose pairs are halved."""
    run = CONFIG["validation"]["halves"]["run"]
    return [(model, run, RUNS[model, run].seeds[0]) for model in MODELS]


def subsets_of_chunk(wildcards):
    """The numbers of the halves that one job trains on."""
    about = CONFIG["validation"]["halves"]
    size, first = about["subsets_per_job"], int(wildcards.chunk) * about["subsets_per_job"]
    return list(range(first, min(first + size, about["subsets"])))


def halved(wildcards):
    about = CONFIG["validation"]["halves"]
    return [
        of_experiment(layout.HALVES, model=model, run=run, seed=seed, chunk=chunk)
        for model, run, seed in full_trainings()
        for chunk in range(-(-about["subsets"] // about["subsets_per_job"]))
    ]


def probed_whole(wildcards):
    """The probes that give every pair its score."""
    return [
        of_experiment(layout.PROBE, model=model, run=run, seed=seed, final_set="heldout")
        for model, run, seed in full_trainings()
    ]


def validated(wildcards):
    """Tables of a figure of validation, named as the arguments of its function."""
    return {name: ancient(VALIDATION[name]) for name in VALIDATION_DRAWN[wildcards.figure]}


def judge_code(wildcards):
    return code_of_judge(JUDGE)


def code_of_judge(judge):
    """Of the judge's function; "" for a decoder of alpaca-eval."""
    return named_code(judge.function) if ":" in judge.function else ""


def judge_needs(resource, otherwise):
    """`gpu`, `mem_mb` or `runtime` of a judging job, as the configuration says."""
    stated = CONFIG["evaluation"]["judging"]["resources"][resource]
    return otherwise if stated is None else stated


# What waits for a judge that can be asked: whatever takes long, and judging itself.
JUDGED_STAGES = {"pretrain_base", "train_sft", "train_reward", "train_offline", "train_online", "judge_responses"}


def require_judge(jobs):
    """Before the first job: one question to a judge that is a model, if there is anything to train or to judge.

    In a process of its own, because alpaca-eval changes the environment of the process that imports it.
    """
    if not (JUDGE.remote or JUDGE.in_process) or JUDGED_STAGES.isdisjoint(job.rule.name for job in jobs):
        return
    evaluation = {"judge": CONFIG["evaluation"]["judge"], "judging": CONFIG["evaluation"]["judging"]}
    command = [sys.executable, "-m", "po_dynamics.evaluation.preflight"]
    if subprocess.run(command, input=json.dumps(evaluation), text=True).returncode:
        raise WorkflowError("the judge cannot be asked; nothing was started")


wildcard_constraints:
    experiment=re.escape(CONFIG["experiment"]),
    model=names(MODELS),
    run=names(sorted({name for _, name in RUNS})),
    seed=r"\d+",
    init="sft|base",
    stage="sft|base",
    final_set="heldout|train",
    data_set=names(DATA_SETS),
    chunk=r"\d+",
    step=r"\d+",

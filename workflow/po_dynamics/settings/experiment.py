"""A whole configuration: the experiment, its data, models, runs, probe and evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from po_dynamics.settings.bandit import ExactBandit
from po_dynamics.settings.base import NAME, Count, Distinct, Positive, Rate, Settings, Some, mistake
from po_dynamics.settings.data import Data
from po_dynamics.settings.judging.calls import Calls
from po_dynamics.settings.models import Model
from po_dynamics.settings.probe import FinalSets, Probe, Validation

RESERVED = ("base", "sft", "reward", "published_reward", "reference", "evaluation")  # folders beside those of runs


def _not_reserved(name: str) -> str:
    if name in RESERVED:
        raise mistake("", name, f"another name than {', '.join(RESERVED)}")
    return name


Name = Annotated[str, Field(pattern=NAME)]
RunName = Annotated[Name, AfterValidator(_not_reserved)]


class Start(Settings):
    """A checkpoint of another run of the same family, from which every seed goes on."""

    run: str
    """its name"""
    step: Positive
    """one of its checkpoints"""


class RunEntry(Settings):
    """A run, or with `sweep` one run per item; each is trained once per seed."""

    objective: str
    """a name of the registry of objectives; see docs/extending.md"""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """of the objective"""
    sweep: Some[Annotated[dict[str, Any], Field(min_length=1)]] | None = None
    """one run per item, which sets these parameters"""
    training: dict[str, Any] = Field(default_factory=dict)
    """overrides of the model's `offline` or `online` section"""
    init: Literal["sft", "base"] | Start = "sft"
    """where training starts: the SFT model, the base model or a checkpoint of another run"""
    models: Distinct[str] | None = None
    """null: every model of the configuration"""
    seeds: Distinct[Count] = (0,)
    """one training each"""
    probe: bool | dict[str, FinalSets] = False
    """whether its checkpoints are probed; or, by model, towards which of `probe.final_sets`; other models are not"""


class Responses(Settings):
    """Greedy responses: of D′, and to the evaluation prompts."""

    max_new_tokens: Positive = 512
    """tokens of a response, also of D′"""


class ReportCard(Settings):
    """What the judge is examined on: three answers to a prompt, each against each, in both orders, twice."""

    truth: str | None = None
    """the judge whose verdicts count as true, `gold` in the embedded world; null: only what needs no truth"""
    prompts: Positive = 100
    """twelve questions each"""


class Evaluation(Responses):
    """Greedy responses to the evaluation prompts, and their judge."""

    judge: str
    """a directory of workflow/judges/, or the name of an annotator that alpaca-eval ships; see docs/judges.md"""
    judging: Calls = Calls()
    """how a judge that is a model is reached, and what that may cost"""
    order: Literal["both", "random"] = "both"
    """in which each pair is shown to the judge; random: the one that alpaca-eval draws, for half the price"""
    report_card: ReportCard | None = None
    """the judge's own examination; null: none"""
    checkpoints_per_job: Positive | None = None
    """null: all checkpoints of a run in one job"""


class TargetSamples(Settings):
    """Responses that policies are compared with their target on."""

    prompts: Annotated[int, Field(ge=2)] = 24
    """drawn from the evaluation prompts; intervals resample them"""
    samples: Positive = 6
    """responses of a checkpoint to each prompt"""
    proposal_samples: Annotated[int, Field(ge=2)] = 16
    """responses of the SFT model, and of each training's last checkpoint, to each prompt; they also estimate log Z"""
    max_new_tokens: Positive = 64
    """tokens at which a response is cut; what is cut there is a response of its own"""


class Target(TargetSamples):
    """Distance of language models to the target of their objectives, π_ref(y|x) exp(r(x, y)/τ)/Z(x)."""

    runs: Distinct[str]
    """names of runs whose checkpoints are compared (of a sweep, of its runs); the SFT model, their start, is π_ref"""
    reward: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")] | None = None
    """r of the target, a "module:function"; null: the model's `preference_rewards`, or its reward model"""
    temperature: Rate = 1.0
    """τ for all of them, beside each run's own, which is its β or, of PPO, its KL coefficient"""
    least_ess: Annotated[float, Field(ge=1)] = 10.0
    """effective sample size below which the log Z of a prompt is flagged"""


class Configuration(Settings):
    """A configuration. Keys that start with x- are free, a place for YAML anchors.

    A model or run that is null is left out: so a file that is merged over another one takes something away.
    """

    model_config = ConfigDict(
        json_schema_extra={"patternProperties": {"^x-": {"description": "free: for YAML anchors"}}}
    )

    experiment: Name
    """results go to `results/<experiment>/`"""
    data: Data
    """the data sets"""
    models: Annotated[dict[Name, Model], Field(min_length=1)]
    """models by name"""
    runs: Annotated[dict[RunName, RunEntry], Field(min_length=1)]
    """runs by name"""
    probe: Probe = Probe()
    """of the checkpoints of probed runs"""
    evaluation: Evaluation
    """of every checkpoint"""
    bandit: ExactBandit | None = None
    """the exact bandit beside the language models, `{}` with its defaults; null: without; see docs/udrra.md"""
    target: Target | None = None
    """distance of policies to the target of their objectives; null: without; see docs/udrra.md"""
    validation: Validation | None = None
    """trainings that leave something out, to validate G; null: without; see docs/validation.md"""
    device_memory_gb: Annotated[float, Field(gt=4)] = 80.0
    """of one graphics card; jobs of published models ask for as many as their parameters need"""
    devices_per_node: Positive = 8
    """graphics cards of a node, which a job can have at most; slurm/config.yaml states both for the cluster"""
    keep_checkpoints: bool = True
    """false: deleted once probed and evaluated"""

    @model_validator(mode="before")
    @classmethod
    def _without_free_and_null(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        stated = {key: value for key, value in given.items() if not str(key).startswith("x-")}
        for section in stated.keys() & {"models", "runs"}:
            if isinstance(stated[section], Mapping):
                stated[section] = {name: entry for name, entry in stated[section].items() if entry is not None}
        return stated

    @model_validator(mode="after")
    def _worlds_keep_to_themselves(self) -> Self:
        if self.data.source == "world":
            return self
        for name, model in self.models.items():
            if model.base.source == "world":
                raise mistake(f"models.{name}.base.source", "world", "hub, as data.source is")
        return self

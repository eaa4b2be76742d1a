"""Replays golden values of TRL's DPOTrainer (sigmoid loss) through the objectives and the production trainer."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.trainer_callback import PrinterCallback

from po_dynamics.errors import InputError
from po_dynamics.models.batches import Batch, token_logps
from po_dynamics.models.loading import turn_off_dropout
from po_dynamics.objectives.pairs import Pairs
from po_dynamics.objectives.registry import bind

if TYPE_CHECKING:
    from trl import DPOConfig

Error = tuple[str, str, float]  # case, quantity, largest absolute error
LOGPS, RUN, META = "a_logps_to_loss.npz", "b_tiny_run.npz", "meta.json"
METRICS = {  # in the files : in training.csv
    "loss": "loss",
    "mean_rewards_chosen": "rewards_chosen",
    "mean_rewards_rejected": "rewards_rejected",
    "mean_rewards_margins": "rewards_margins",
    "mean_rewards_accuracies": "rewards_accuracies",
    "lr_logged": "learning_rate",
}


def replay_dpo(directory: Path) -> Iterator[Error]:
    """(case, quantity, largest absolute error) of parts A, B and C in a directory, whichever files it has."""
    if (directory / LOGPS).is_file():
        with np.load(directory / LOGPS) as golden:
            yield from _replay_logps(str(directory), dict(golden))
    if (directory / RUN).is_file():
        with np.load(directory / RUN) as golden:
            yield from _replay_run(str(directory), dict(golden), json.loads((directory / META).read_text()))


def _worst(actual: Any, expected: Any) -> float:
    """Largest |actual − expected| / max(1, |expected|): absolute for small values, relative for what float32 rounds."""
    reference = np.asarray(expected, dtype=np.float64)
    error = np.abs(np.asarray(actual, dtype=np.float64) - reference) / np.maximum(1, np.abs(reference))
    return float("inf") if np.isnan(error).any() else float(error.max(initial=0.0))


# ---------------------------------------------------------------------------------- A and C: log-probs → loss, gradient


def _replay_logps(directory: str, golden: Mapping[str, np.ndarray]) -> Iterator[Error]:
    betas = sorted({key.split("/")[0] for key in golden if key.startswith("beta")})
    if not betas:
        raise InputError(f"{directory}/{LOGPS} has no beta…/ entries")
    policy_BT = torch.tensor(golden["policy_token_logps"], dtype=torch.float64)
    mask_BT = torch.tensor(golden["completion_mask"])[:, 1:].bool()
    for name in betas:
        chosen_N, rejected_N = policy_BT.sum(1).chunk(2)
        references_N = (torch.tensor(golden[f"ref_{role}_logps"]).double() for role in ("chosen", "rejected"))
        pairs = Pairs(chosen_N, rejected_N, *references_N, *mask_BT.sum(1).chunk(2))  # type: ignore[call-arg]
        case = {key.removeprefix(f"{name}/"): value for key, value in golden.items() if key.startswith(f"{name}/")}
        for quantity, error in _compare_logps(pairs, mask_BT, float(name.removeprefix("beta")), case):
            yield f"{directory} {name}", quantity, error


def _compare_logps(
    pairs: Pairs, mask_BT: Tensor, beta: float, golden: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, float]]:
    terms = bind("dpo", {"beta": beta})(pairs, 0)
    rewards_N = {"chosen": beta * pairs.chosen_logratios_N, "rejected": beta * pairs.rejected_logratios_N}
    rewards_N["margins"] = rewards_N["chosen"] - rewards_N["rejected"]
    rewards_N["accuracies"] = (rewards_N["margins"] > 0).double()
    replayed = {"loss": terms.loss_N.mean(), "loss_per_pair": terms.loss_N}
    replayed |= {f"rewards_{key}_per_pair": value for key, value in rewards_N.items()}
    replayed |= {f"mean_rewards_{key}": value.mean() for key, value in rewards_N.items()}
    replayed |= {"mean_logps_chosen": pairs.chosen_logps_N.mean(), "mean_logps_rejected": pairs.rejected_logps_N.mean()}
    for key, expected in golden.items():
        if match := re.fullmatch(r"(?:scaled_([\d.]+)_([\d.]+)/)?grad_token_logps", key):
            positive, negative = (float(group or 1) for group in match.groups())
            c_B = torch.cat([positive * terms.chosen_N, negative * terms.rejected_N]) / len(terms.loss_N)
            rows, places = mask_BT.nonzero(as_tuple=True)  # the files hold the stub's gradient at padding too
            yield key, _worst(-c_B[rows], expected[rows.numpy(), places.numpy()])
        else:
            yield key, _worst(replayed[key], expected)


# -------------------------------------------------------------------------------------------- B: a run of the trainer


def _replay_run(directory: str, golden: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Iterator[Error]:
    from po_dynamics.training import offline_trainer  # TRL: only for this part

    if meta["config"].get("loss_type", "sigmoid") not in ("sigmoid", ["sigmoid"]):
        raise InputError(f"{directory}/{META}: loss_type is {meta['config']['loss_type']!r}; only sigmoid is replayed")
    models = {name: _model(golden, meta, name) for name in ("policy", "ref")}
    batches = [_batch(golden, s) for s in range(meta["steps"])]
    with torch.no_grad():
        references = [token_logps(models["ref"], batch) for batch in batches]
    rows = [row for batch, logps_BT in zip(batches, references, strict=True) for row in _rows(batch, logps_BT)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = offline_trainer.OfflineTrainer(
            models["policy"],
            _arguments(meta, folder),
            _tokenizer(meta["model_config"]),
            rows,
            bind("dpo", {"beta": meta["config"]["beta"]}),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(offline_trainer.StepRecord(trainer))
        recorder = _recorder(batches)
        trainer.add_callback(recorder)
        trainer.train()
    if len(recorder.steps) != meta["steps"]:
        raise InputError(f"{directory}/{RUN}: the trainer took {len(recorder.steps)} steps, not {meta['steps']}")
    worst: dict[str, float] = {}
    for s, (replayed, reference_BT) in enumerate(zip(recorder.steps, references, strict=True)):
        replayed["ref_token_logps"] = reference_BT
        for quantity, error in _compare_step(replayed, golden, f"step{s}/"):
            worst[quantity] = max(error, worst.get(quantity, 0.0))
    for quantity, error in worst.items():
        yield f"{directory} run", quantity, error


def _compare_step(
    replayed: Mapping[str, Any], golden: Mapping[str, np.ndarray], prefix: str
) -> Iterator[tuple[str, float]]:
    inputs = {"input_ids", "attention_mask", "completion_mask"}
    for key in (key.removeprefix(prefix) for key in golden if key.startswith(prefix)):
        if key not in inputs:
            quantity = key.split("/")[0]
            yield quantity, _worst(replayed[METRICS.get(key, key)], golden[prefix + key])


def _recorder(batches: list[Batch]) -> Any:
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):
        """Log-probs before each update; metrics and weights after it, by the names in the files."""

        def __init__(self) -> None:
            self.steps: list[dict[str, Any]] = []
            self.logps_BT = torch.empty(0)

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            with torch.no_grad():
                self.logps_BT = token_logps(kwargs["model"], batches[state.global_step])

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "grad_norm" in logs:
                named = {f"weights_after/{n}": p.detach().clone() for n, p in kwargs["model"].named_parameters()}
                self.steps.append({**logs, "policy_token_logps": self.logps_BT, **named})

    return Recorder()


def _model(golden: Mapping[str, np.ndarray], meta: Mapping[str, Any], name: str) -> PreTrainedModel:
    settings = dict(meta["model_config"])
    architecture = settings.pop("model_type", "gpt_neox")
    config = AutoConfig.for_model(architecture, **settings)
    turn_off_dropout(config)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    prefix = f"init/{name}/"
    state = {key.removeprefix(prefix): torch.tensor(v) for key, v in golden.items() if key.startswith(prefix)}
    model.load_state_dict(state)
    return model.eval()


def _batch(golden: Mapping[str, np.ndarray], s: int) -> Batch:
    names = ("input_ids", "attention_mask", "completion_mask")
    ids, attention, completion = (torch.tensor(golden[f"step{s}/{name}"]) for name in names)
    return Batch(ids, attention, completion[:, 1:].bool())


def _rows(batch: Batch, reference_BT: Tensor) -> list[dict[str, Any]]:
    """The batch as rows of the training set: its tokens split into prompt and responses."""
    n = len(batch.input_ids_BL) // 2
    sequences = [
        ids[mask.bool()].tolist() for ids, mask in zip(batch.input_ids_BL, batch.attention_mask_BL, strict=True)
    ]
    starts = (batch.loss_mask_BT.int().argmax(1) + 1).tolist()  # a mask of a prediction is one place before its token
    logps = reference_BT.sum(1).tolist()
    return [
        {
            "id": str(i),
            "prompt_ids": sequences[i][: starts[i]],
            "chosen_ids": sequences[i][starts[i] :],
            "rejected_ids": sequences[n + i][starts[n + i] :],
            "ref_chosen_logps": logps[i],
            "ref_rejected_logps": logps[n + i],
        }
        for i in range(n)
    ]


def _arguments(meta: Mapping[str, Any], folder: str) -> DPOConfig:
    from trl import DPOConfig

    extra = {key: meta[key] for key in ("max_grad_norm", "weight_decay") if key in meta}
    settings = {**meta["config"], **extra, "report_to": "none", "logging_steps": 1, "max_length": None}
    settings["precompute_ref_log_probs"] = False  # they are in the rows
    return DPOConfig(output_dir=folder, **settings)


def _tokenizer(model_config: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """A token t<i> for every id i; the trainer needs one, though the rows are token ids."""
    vocabulary = {f"t{i}": i for i in range(model_config["vocab_size"])}
    special = {name: f"t{model_config[f'{name}_id']}" for name in ("pad_token", "eos_token")}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="t0"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="t0", **special)

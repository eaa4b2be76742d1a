"""TRL's DPOTrainer with our coefficients: only the public `compute_loss` is replaced.

Importing this module imports TRL (about 5 s). TRL gives the collator, distribution, optimizer, schedules and
checkpoints; the policy's log-probabilities come from `models.token_logps`, the code path of the probe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from po_dynamics.data.preferences import REWARDS
from po_dynamics.models.batches import Batch, token_logps
from po_dynamics.objectives.declaration import Objective
from po_dynamics.objectives.pairs import Pairs, PairTerms
from po_dynamics.objectives.schedules import learning_rate_factor
from po_dynamics.settings.training import Offline
from po_dynamics.storage.moments import restore_moments
from po_dynamics.training.resume import collate_with_ids

METRICS = (  # means over the pairs of a step; log-probs in nats, sums over response tokens
    "loss",
    "rewards_chosen",
    "rewards_rejected",
    "rewards_margins",
    "rewards_accuracies",
    "logratios_chosen",
    "logratios_rejected",
    "logps_chosen",
    "logps_rejected",
    "coefficient_chosen",
    "coefficient_rejected",
    "weight",
)


class OfflineTrainer(DPOTrainer):
    """Trains any offline objective; `train_dataset` holds tokenised pairs with their reference log-probs.

    Rows have `id`, `prompt_ids`, `chosen_ids`, `rejected_ids`, `ref_chosen_logps`, `ref_rejected_logps` (objectives of
    rewards need `REWARDS` too) and are taken in their order: the data order is the caller's. `first_step` is the step t
    of the model that training starts from.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: DPOConfig,
        tokenizer: PreTrainedTokenizerBase,
        rows: Any,
        objective: Objective,
        first_step: int = 0,
        **options: Any,
    ) -> None:
        self.objective: Objective = objective
        self.first_step = first_step
        self.micro_batches: list[Tensor] = []
        args.remove_unused_columns = False
        args.train_sampling_strategy = "sequential"
        placeholder = Dataset.from_list([dict.fromkeys(["prompt", "chosen", "rejected"], tokenizer.eos_token)])
        super().__init__(
            model=model,
            ref_model=_no_reference(),
            args=args,
            train_dataset=placeholder,
            processing_class=tokenizer,
            data_collator=collate_with_ids(collate_with_rewards(DataCollatorForPreference(tokenizer.pad_token_id))),
            **options,
        )
        self.train_dataset = rows
        self.ref_model = None
        # TRL has put its fused LM head in place of `forward`, bound to this very instance; we do not use it.
        self.model.__dict__.pop("forward", None)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The mean textbook loss, with the gradient −(1/N) Σ c ∇log π."""
        pairs = policy_pairs(model, inputs)
        terms = self.objective(pairs, self.first_step + self.state.global_step)
        self.micro_batches.append(self._metrics_of(pairs, terms))
        surrogate = -(terms.chosen_N * pairs.chosen_logps_N + terms.rejected_N * pairs.rejected_logps_N).mean()
        return surrogate - surrogate.detach() + terms.loss_N.mean()

    def _metrics_of(self, pairs: Pairs, terms: PairTerms) -> Tensor:
        beta = self.objective.parameters.get("beta", 1.0)
        chosen_N, rejected_N = pairs.chosen_logratios_N.detach(), pairs.rejected_logratios_N.detach()
        columns = (
            terms.loss_N,
            beta * chosen_N,
            beta * rejected_N,
            beta * (chosen_N - rejected_N),
            (chosen_N > rejected_N).to(chosen_N.dtype),
            chosen_N,
            rejected_N,
            pairs.chosen_logps_N.detach(),
            pairs.rejected_logps_N.detach(),
            terms.chosen_N,
            terms.rejected_N,
            terms.weight_N,
        )
        return torch.stack([column.mean() for column in columns])

    def take_metrics(self) -> dict[str, float]:
        """Means of `METRICS` over the micro-batches (of all processes) since the last call."""
        local = torch.stack(self.micro_batches).mean(0)
        self.micro_batches.clear()
        return dict(zip(METRICS, self.accelerator.reduce(local, "mean").tolist(), strict=True))


def policy_pairs(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Pairs:
    """Pairs of a collated batch (rows: all chosen, then all rejected), log-probs with gradients."""
    mask_BT = inputs["completion_mask"][:, 1:].bool()
    logps_BT = token_logps(model, Batch(inputs["input_ids"], inputs["attention_mask"], mask_BT))
    (chosen_N, rejected_N), (chosen_lengths_N, rejected_lengths_N) = logps_BT.sum(1).chunk(2), mask_BT.sum(1).chunk(2)
    references_N = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
    rewards_N = (inputs.get(name) for name in REWARDS)
    return Pairs(chosen_N, rejected_N, *references_N, chosen_lengths_N, rejected_lengths_N, *rewards_N)


def collate_with_rewards(collator: Callable[[list[dict[str, Any]]], Any]) -> Callable[[list[dict[str, Any]]], Any]:
    """Carries the columns `REWARDS` of the examples, where they have them, to the batch: TRL's collator drops them."""

    def collate(examples: list[dict[str, Any]]) -> Any:
        batch = collator(examples)
        for name in REWARDS:
            if name in examples[0]:
                batch[name] = torch.tensor([example[name] for example in examples])
        return batch

    return collate


def _no_reference() -> PreTrainedModel:
    """What TRL is given in place of a reference model, so that it loads none: the log-probs are in the rows."""
    config = GPTNeoXConfig(vocab_size=1, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    return GPTNeoXForCausalLM(config)


class StepRecord(TrainerCallback):
    """Adds `METRICS` to what the trainer logs."""

    def __init__(self, trainer: OfflineTrainer) -> None:
        self.trainer = trainer

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "grad_norm" in logs:  # the summary at the end of training has none
            logs |= self.trainer.take_metrics()


class AbsoluteSteps(TrainerCallback):
    """Makes the learning rate a function of the step t, and AdamW go on where the initial checkpoint was taken.

    transformers counts steps from the start of this run, so a run from another one's checkpoint would warm up again.
    AdamW continues with the second moments stored in that checkpoint, and with no momentum.
    """

    def __init__(self, init: Path, first_step: int, settings: Offline) -> None:
        self.init, self.first_step, self.settings = init, first_step, settings

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._set_schedule(kwargs["lr_scheduler"], kwargs["optimizer"], state.global_step)
        if state.global_step == 0 and self.first_step:
            restore_moments(self.init, kwargs["model"], kwargs["optimizer"])

    def _set_schedule(self, scheduler: Any, optimizer: Any, done: int) -> None:
        last = self.settings.max_steps
        warmup = math.ceil(self.settings.warmup_ratio * last)

        def factor(step: int) -> float:
            return learning_rate_factor(self.first_step + step, self.settings.lr_schedule, warmup, last)

        scheduler.lr_lambdas = [factor] * len(optimizer.param_groups)
        scheduler._last_lr = [base * factor(done) for base in scheduler.base_lrs]  # what is logged
        for group, rate in zip(optimizer.param_groups, scheduler._last_lr, strict=True):
            group["lr"] = rate

"""One PPO update: epochs over a roll-out batch, the coefficients' surrogate for the policy, regression for the critic.

`Update` reads from the top: epochs, mini-batches (an optimizer step each), micro-batches (a forward and a backward pass
of both models each). The losses that it uses follow, then clipping and the optimizers.

The policy's gradient is −(1/T) Σ c_t ∇log π(y_t) with the detached coefficients of `objectives`, so what trains is what
the probe measures. T counts the response tokens of the mini-batch over all processes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from po_dynamics.errors import InputError
from po_dynamics.models.batches import lengths, similar_lengths, token_logps
from po_dynamics.models.critic import token_values
from po_dynamics.objectives.declaration import Objective
from po_dynamics.objectives.schedules import learning_rate_factor
from po_dynamics.objectives.tokens import Tokens, TokenTerms
from po_dynamics.ppo.experience import Experience
from po_dynamics.settings.online import Online
from po_dynamics.storage import sharding


@dataclass
class Learner:
    """What an update changes: two models (as `accelerator.prepare` returns them), each with its own AdamW."""

    policy: nn.Module
    critic: nn.Module
    policy_optimizer: torch.optim.Optimizer
    critic_optimizer: torch.optim.Optimizer
    accelerator: Accelerator


class NonFiniteError(InputError):
    """A loss or gradient norm that is not finite, and the rows of the batch it came from."""

    def __init__(self, what: str, value: float, rows: Sequence[int]) -> None:
        super().__init__(f"{what} is {value}")
        self.what, self.value, self.rows = what, value, list(rows)


class ValueTerms(NamedTuple):
    """Loss of each state, and where the clipped branch was the larger; 0 and False outside the mask."""

    loss_BT: Tensor
    clipped_BT: Tensor


def set_learning_rates(learner: Learner, settings: Online, step: int) -> float:
    """Sets the learning rates of update `step` (from 0), a function of the step alone; returns the policy's."""
    factor = learning_rate_factor(step, settings.lr_schedule, 0, settings.max_steps)
    rate, critic_rate = settings.learning_rate, settings.critic_learning_rate or settings.learning_rate
    for optimizer, peak in ((learner.policy_optimizer, rate), (learner.critic_optimizer, critic_rate)):
        for group in optimizer.param_groups:
            group["lr"] = peak * factor
    return rate * factor


class Update:
    """Runs one update and keeps its sums: `Update(learner, objective, settings, step)(experience, orders)`."""

    def __init__(self, learner: Learner, objective: Objective, settings: Online, step: int) -> None:
        self.learner, self.objective, self.settings, self.step = learner, objective, settings, step
        self.trains_policy = step >= settings.critic_warmup_steps
        self.sums: dict[str, float] = defaultdict(float)
        self.norms: dict[str, list[float]] = {"policy": [], "critic": []}
        self.first_ratio: tuple[float, float] | None = None

    def __call__(self, experience: Experience, orders: Sequence[Sequence[int]]) -> None:
        """One epoch per order; an order permutes the rows of the whole batch, the same on every process."""
        for order in orders:
            size = len(order) // self.settings.mini_batches
            for start in range(0, len(order), size):
                self.mini_batch(experience, list(order[start : start + size]))

    def mini_batch(self, experience: Experience, rows: list[int]) -> None:
        """Accumulates the gradients of this process's micro-batches, then steps the optimizers."""
        index = torch.as_tensor(rows, device=experience.old_logps_BT.device)
        tokens = int(experience.batch.loss_mask_BT[index].sum())
        # The gradients are averaged over the processes, hence their number.
        divisor = max(tokens, 1) / self.learner.accelerator.num_processes
        micro_batches = self.micro_batches(experience, rows)
        for number, micro in enumerate(micro_batches, start=1):
            part, last = experience.rows(micro), number == len(micro_batches)
            logps_BT, terms = self.policy_pass(part, divisor, last)
            _, value_errors = self.critic_pass(part, divisor, last)
            self.record(part, logps_BT, terms, value_errors, micro)
        self.optimizer_step(rows)

    def micro_batches(self, experience: Experience, rows: list[int]) -> list[list[int]]:
        """The rows of this process in forward passes; with token weights the grouping does not change the gradient."""
        accelerator, widths = self.learner.accelerator, lengths(experience.batch.loss_mask_BT)
        rows = sorted(rows, key=lambda row: -widths[row])
        own = rows[accelerator.process_index :: accelerator.num_processes]
        return similar_lengths(own, widths, self.settings.micro_batch_size)

    def policy_pass(self, part: Experience, divisor: float, last: bool) -> tuple[Tensor, TokenTerms]:
        """Log-probs (B, T) and terms of some rows; accumulates the policy's gradient unless only the critic learns."""
        if not self.trains_policy:
            return part.old_logps_BT, self.terms(part, part.old_logps_BT)
        accelerator, policy = self.learner.accelerator, self.learner.policy
        with synchronised(policy, accelerator, last):
            logps_BT = token_logps(policy, part.batch, self.settings.temperature)  # type: ignore[arg-type]
            terms = self.terms(part, logps_BT)
            accelerator.backward(surrogate(terms, logps_BT, divisor))
        return logps_BT.detach(), terms

    def critic_pass(self, part: Experience, divisor: float, last: bool) -> tuple[Tensor, ValueTerms]:
        """Values (B, T) and their losses; accumulates the critic's gradient."""
        accelerator, critic = self.learner.accelerator, self.learner.critic
        with synchronised(critic, accelerator, last):
            values_BT = token_values(critic, part.batch)
            loss_BT, clipped_BT = value_terms(values_BT, part, self.settings.value_clip)
            accelerator.backward(self.settings.value_coefficient * loss_BT.sum() / divisor)
        return values_BT.detach(), ValueTerms(loss_BT.detach(), clipped_BT)

    def terms(self, part: Experience, logps_BT: Tensor) -> TokenTerms:
        """Losses and coefficients of the objective at these log-probs."""
        mask_BT = part.batch.loss_mask_BT
        tokens = Tokens(logps_BT.detach(), part.old_logps_BT, part.advantages.whitened_BT, mask_BT, part.quantiles)
        return self.objective(tokens, self.step)

    def optimizer_step(self, rows: Sequence[int]) -> None:
        """Clips the gradients and steps both optimizers; NonFiniteError, before either steps, for a norm not finite."""
        learner, limit = self.learner, self.settings.max_grad_norm
        pairs = [("critic", learner.critic, learner.critic_optimizer)]
        if self.trains_policy:
            pairs.insert(0, ("policy", learner.policy, learner.policy_optimizer))
        for name, model, _ in pairs:
            # An infinite limit only measures: the scale is clamped to 1.
            norm = float(clip_grad_norm(model, float("inf") if limit is None else limit, learner.accelerator))
            if not norm < float("inf"):
                raise NonFiniteError(f"the gradient norm of the {name}", norm, rows)
            self.norms[name].append(norm)
        for _, _, optimizer in pairs:
            optimizer.step()
            optimizer.zero_grad()

    def record(
        self, part: Experience, logps_BT: Tensor, terms: TokenTerms, value_errors: ValueTerms, rows: Sequence[int]
    ) -> None:
        """Adds a micro-batch to the sums; NonFiniteError for a loss that is not finite."""
        mask_BT = part.batch.loss_mask_BT
        tokens, log_ratio = int(mask_BT.sum()), (logps_BT - part.old_logps_BT)[mask_BT]
        ratio = log_ratio.exp()
        if self.first_ratio is None and tokens:
            self.first_ratio = float(ratio.mean()), float((ratio - 1.0).abs().max())
        on_policy_BT = self.terms(part, part.old_logps_BT).coefficient_BT
        clipped_BT = (on_policy_BT != 0.0) & (terms.coefficient_BT == 0.0)
        sums = {
            "ratio": ratio.sum(),
            "step_kl": (log_ratio.expm1() - log_ratio).sum(),
            "clipped": clipped_BT.sum(),
            "value_clipped": value_errors.clipped_BT.sum(),
            "policy_loss": terms.loss_BT.sum(),
            "value_loss": value_errors.loss_BT.sum(),
        }
        packed = torch.stack([value.double() for value in sums.values()])  # one transfer from the device
        for name, value in zip(sums, packed.tolist(), strict=True):
            self.sums[name] += value
            if name.endswith("loss") and not abs(value) < float("inf"):
                raise NonFiniteError(f"the {name.replace('_', ' ')}", value, rows)
        self.sums["tokens"] += tokens

    def metrics(self) -> dict[str, float]:
        """Means over the tokens of all epochs and processes; norms before clipping, mean over the steps."""
        names = list(self.sums)
        device = self.learner.accelerator.device
        packed = torch.tensor([self.sums[name] for name in names], dtype=torch.float64, device=device)
        reduced = dict(zip(names, self.learner.accelerator.reduce(packed, "sum").tolist(), strict=True))
        tokens = max(reduced["tokens"], 1.0)
        norms = {key: sum(values) / len(values) if values else 0.0 for key, values in self.norms.items()}
        first = self.first_ratio or (1.0, 0.0)
        return {
            "policy_loss": reduced["policy_loss"] / tokens,
            "value_loss": reduced["value_loss"] / tokens,
            "ratio_first": first[0],
            "ratio_first_deviation": first[1],
            "ratio": reduced["ratio"] / tokens,
            "step_kl": reduced["step_kl"] / tokens,
            "clip_fraction": reduced["clipped"] / tokens,
            "value_clip_fraction": reduced["value_clipped"] / tokens,
            "policy_grad_norm": norms["policy"],
            "critic_grad_norm": norms["critic"],
        }


def surrogate(terms: TokenTerms, logps_BT: Tensor, divisor: Tensor | float) -> Tensor:
    """Scalar with the value Σ loss / divisor and the gradient −Σ c ∇log π / divisor."""
    carrier = -(terms.coefficient_BT * logps_BT).sum() / divisor
    return carrier + (terms.loss_BT.sum() / divisor - carrier).detach()


def value_terms(values_BT: Tensor, experience: Experience, clip: float | None) -> ValueTerms:
    """½ max((V − R)², (V_clip − R)²), V_clip within `clip` of the old value (Schulman et al.'s PPO code; TRL 1.12)."""
    mask_BT, returns_BT = experience.batch.loss_mask_BT, experience.advantages.returns_BT
    error_BT = (values_BT - returns_BT).square()
    if clip is None:
        return ValueTerms(0.5 * error_BT.masked_fill(~mask_BT, 0.0), torch.zeros_like(mask_BT))
    old_BT = experience.old_values_BT
    clipped_error_BT = (values_BT.clamp(old_BT - clip, old_BT + clip) - returns_BT).square()
    loss_BT = 0.5 * torch.maximum(error_BT, clipped_error_BT).masked_fill(~mask_BT, 0.0)
    return ValueTerms(loss_BT, (clipped_error_BT > error_BT) & mask_BT)


def synchronised(model: nn.Module, accelerator: Accelerator, last: bool) -> AbstractContextManager[Any]:
    """Gradients are averaged over processes with the last micro-batch of a step only."""
    return nullcontext() if last else accelerator.no_sync(model)


def clip_grad_norm(model: nn.Module, limit: float, accelerator: Accelerator) -> Tensor:
    """Clips the gradients; the norm before. accelerate cannot tell two sharded models of as many parameters apart."""
    if accelerator.is_fsdp2:
        return sharding.full_tensor(torch.nn.utils.clip_grad_norm_(model.parameters(), limit))
    return accelerator.clip_grad_norm_(model.parameters(), limit)


def make_optimizer(model: nn.Module, learning_rate: float, weight_decay: float, epsilon: float) -> torch.optim.AdamW:
    """AdamW(0.9, 0.999); weight decay on matrices only, not on biases and norms."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=learning_rate, betas=(0.9, 0.999), eps=epsilon)

"""TRL 1.12's update where it differs from ours; the passes, losses, gradients and optimizer steps are production's."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from po_dynamics.objectives.tokens import Tokens
from po_dynamics.parity.advantages import Replay
from po_dynamics.parity.cases import Case
from po_dynamics.ppo.experience import Experience
from po_dynamics.ppo.update import Learner, Update, surrogate, value_terms

INVALID = 1.0  # what TRL writes over the log-probs of padding


class MicroBatch(NamedTuple):
    """What the passes of both models gave for some rows, before the optimizers step."""

    rows: list[int]
    logps_BT: Tensor
    values_BT: Tensor
    steps: bool  # the optimizers step after it


class TrlUpdate(Update):
    """Rows in the order drawn; each micro-batch's own mean, divided by the accumulation; steps across mini-batches.

    `since_step` counts the micro-batches since the last optimizer step, which may lie in the update before. `watch` is
    called with every micro-batch, its gradients accumulated.
    """

    def __init__(self, case: Case, update: int, learner: Learner, watch: Callable[[MicroBatch], None]) -> None:
        super().__init__(learner, case.objective(), case.settings(), update)
        self.step_every = case.steps_every(update)
        self.accumulation = case.config["gradient_accumulation_steps"]
        self.watch = watch
        self.since_step = 0
        self.mask_BT = torch.empty(0)

    def replay(self, replay: Replay, orders: list[list[int]]) -> None:
        """One epoch per order."""
        self.mask_BT = replay.mask_BT
        self(replay.states, orders)

    def mini_batch(self, experience: Experience, rows: list[int]) -> None:
        """As production's, but for the order of the rows, the divisors and when the optimizers step."""
        size = self.settings.micro_batch_size
        for start in range(0, len(rows), size):
            micro = rows[start : start + size]
            part = Replay(experience, self.mask_BT).rows(micro)
            tokens, states = int(part.mask_BT.sum()), int(part.states.batch.loss_mask_BT.sum())
            self.since_step += 1
            steps = self.since_step == self.step_every
            logps_BT, _ = self.policy_pass(part.tokens, max(tokens, 1) * self.accumulation, steps)
            values_BT, _ = self.critic_pass(part.states, max(states, 1) * self.accumulation, steps)
            self.watch(MicroBatch(micro, logps_BT, values_BT, steps))
            if steps:
                self.optimizer_step(rows)
                self.since_step = 0


def losses(case: Case, replay: Replay, logps: Tensor, values: Tensor) -> dict[str, Tensor]:
    """What TRL logs of a micro-batch, and the gradients of its loss, (rows, R)."""
    settings, experience, mask = case.settings(), replay.states, replay.mask_BT
    logps, values = logps.detach().requires_grad_(), values.detach().requires_grad_()
    terms = case.objective()(Tokens(logps, experience.old_logps_BT, experience.advantages.whitened_BT, mask), 0)
    errors = value_terms(values, experience, settings.value_clip)
    count, states = mask.sum(), experience.batch.loss_mask_BT.sum()
    mean_loss = surrogate(terms, logps, count.clamp(min=1).double())
    policy_loss = mean_loss.where(count > 0, torch.nan)  # TRL logs 0/0 for no tokens at all
    value_loss = errors.loss_BT.sum() / states
    gradients = torch.autograd.grad(mean_loss + settings.value_coefficient * value_loss, (logps, values))
    ratio = (logps - experience.old_logps_BT).detach().exp()
    clipped = (terms.coefficient_BT == 0.0) & (experience.advantages.whitened_BT != 0.0) & mask
    return {
        "new_logprobs": logps.detach().masked_fill(~mask, INVALID),
        "vpred": values.detach(),
        "ratio": ratio,
        "pg_loss": policy_loss.detach(),
        "vf_loss": value_loss.detach(),
        "loss": (policy_loss + settings.value_coefficient * value_loss).detach(),
        "pg_clipfrac": clipped.sum() / count,
        "vf_clipfrac": errors.clipped_BT.sum() / states,
        "approxkl": 0.5 * ratio.log().square().mean(),
        "grad_new_logprobs": gradients[0],
        "grad_vpred": gradients[1],
    }

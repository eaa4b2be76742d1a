"""TRL 1.12's way from roll-out tensors to advantages, made of the production formulas.

It differs from ours in one thing: the score comes in the column after the last token, where there is room. The state
there has a value but no token, so that rewards and values have one column more per row than log-probs and advantages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from po_dynamics.models.batches import Batch
from po_dynamics.parity.cases import Case, Reading
from po_dynamics.ppo import advantages
from po_dynamics.ppo.advantages import Advantages
from po_dynamics.ppo.experience import Experience


class Replay(NamedTuple):
    """An experience whose mask marks the states that have a value, and which of them are followed by a token."""

    states: Experience
    mask_BT: Tensor

    @property
    def tokens(self) -> Experience:
        """The same, with the mask of the tokens."""
        return self.states._replace(batch=self.states.batch._replace(loss_mask_BT=self.mask_BT))

    def rows(self, rows: list[int]) -> Replay:
        """Some rows, as `Experience.rows` cuts them."""
        part = self.states.rows(rows)
        return Replay(part, self.mask_BT[rows, : part.batch.loss_mask_BT.shape[1]])

    def columns(self, change: Callable[[Tensor], Tensor], batch: Batch) -> Replay:
        """`change` of every (B, T) part, on another batch, whose mask becomes that of the states."""
        old, logps, ref_logps, values, estimated, quantiles = self.states
        batch = batch._replace(loss_mask_BT=change(old.loss_mask_BT))
        estimated = Advantages(*map(change, estimated))
        states = Experience(batch, change(logps), change(ref_logps), change(values), estimated, quantiles)
        return Replay(states, change(self.mask_BT))


def score_columns(last_N: Tensor, width: int) -> Tensor:
    """The column after the last token where there is room, else that of the last token.

    `last_N` is the column of the last token (−1: the response is empty), `width` the number of columns.
    """
    return torch.where(last_N + 1 < width, last_N + 1, last_N)


def penalised_scores(case: Case, reading: Reading, scores_N: Tensor) -> Tensor:
    """Scores after the missing-EOS penalty."""
    return advantages.penalise_missing_eos(scores_N, reading.ended_N, case.settings().missing_eos_penalty)


def estimate(
    case: Case, reading: Reading, scores_N: Tensor, logps: Tensor, ref_logps: Tensor, values: Tensor
) -> Replay:
    """From raw tensors (N, R) to an experience of the responses alone."""
    settings, mask, value_mask = case.settings(), reading.mask, reading.value_mask
    logps, ref_logps = logps.masked_fill(~mask, 0.0), ref_logps.masked_fill(~mask, 0.0)
    values = values.masked_fill(~value_mask, 0.0)
    kl = advantages.kl_estimate(logps, ref_logps, settings.kl_estimator)
    scores_N, columns_N = penalised_scores(case, reading, scores_N), score_columns(reading.last_N, mask.shape[1])
    rewards = advantages.token_rewards(kl, scores_N, columns_N, settings.kl_coefficient)
    estimated = advantages.estimate(
        rewards, values, value_mask, settings.gamma, settings.gae_lambda, settings.whiten_rewards
    )
    estimated = estimated._replace(whitened_BT=advantages.whiten(estimated.raw_BT, mask))
    states = Experience(Batch(reading.responses, mask, value_mask), logps, ref_logps, values, estimated, None)
    return Replay(states, mask)

"""Replays golden values of TRL 1.12's PPOTrainer through the production functions.

Three independent levels: (1) roll-out tensors → advantages, (2) log-probs and values → losses and gradients,
(3) initial weights and sampled tokens → the whole trajectory (`parity.trajectory`). What is TRL's own stands in this
folder (lengths from the first pad id, the score after EOS, its mini-batches); the rest is what trains.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from po_dynamics.models.batches import Batch
from po_dynamics.parity.advantages import Replay, estimate, penalised_scores, score_columns
from po_dynamics.parity.cases import Case, Quantity, compare, read
from po_dynamics.parity.trajectory import Trajectory
from po_dynamics.parity.update import INVALID, losses
from po_dynamics.ppo import advantages
from po_dynamics.ppo.experience import Experience

Error = tuple[str, str, float]  # case, quantity, largest error


def replay_ppo(directory: Path) -> Iterator[Error]:
    """(case, quantity, largest error) of every `<case>.json` with an `.npz` in a directory.

    The error is |ours − golden| / max(1, |golden|), maximal over the updates and micro-batches of the case.
    """
    for path in sorted(directory.glob("*.json")):
        if not path.with_suffix(".npz").is_file():
            continue
        case = Case.read(path)
        largest: dict[str, float] = {}
        for quantity, error in (*level_1(case), *level_2(case), *Trajectory(case)()):
            largest[quantity] = max(error, largest.get(quantity, 0.0))
        yield from ((path.stem, quantity, error) for quantity, error in largest.items())


def level_1(case: Case) -> Iterator[Quantity]:
    """Roll-out tensors → advantages."""
    for update in case.updates:
        u, reading, coefficient = f"u{update}", read(case, update), case.settings().kl_coefficient
        raw = [case(f"{u}/{name}") for name in ("scores_raw", "logprobs_raw", "ref_logprobs_raw", "values_raw")]
        experience = estimate(case, reading, *raw).states
        logps, ref_logps, estimated = experience.old_logps_BT, experience.ref_logps_BT, experience.advantages
        kl = advantages.kl_estimate(logps, ref_logps, case.settings().kl_estimator)
        scores_N = penalised_scores(case, reading, raw[0])
        columns_N = score_columns(reading.last_N, kl.shape[1])
        ours = {
            "postprocessed_responses": reading.responses,
            "sequence_lengths": reading.last_N,
            "contain_eos_token": reading.ended_N,
            "padding_mask": ~reading.mask,
            "padding_mask_p1": ~reading.value_mask,
            "scores": scores_N,
            "logprobs": logps.masked_fill(~reading.mask, INVALID),
            "ref_logprobs": ref_logps.masked_fill(~reading.mask, INVALID),
            "values": experience.old_values_BT,
            "kl": kl,
            "non_score_reward": -coefficient * kl,
            "actual_end": columns_N,
            "rewards_before_whitening": advantages.token_rewards(kl, scores_N, columns_N, coefficient),
            "rewards": estimated.rewards_BT,
            "advantages_before_whitening": estimated.raw_BT,
            "returns": estimated.returns_BT,
            "advantages": estimated.whitened_BT,
        }
        yield from compare(case, u, 1, ours)


def level_2(case: Case) -> Iterator[Quantity]:
    """Log-probs and values → losses and gradients."""
    for update in case.updates:
        for micro in case.micros(update):
            u, m = f"u{update}", f"u{update}/micro{micro}"
            replay = recorded(case, u, case(f"{m}/inds"))
            mask = replay.mask_BT
            ours = losses(case, replay, case(f"{m}/new_logprobs").masked_fill(~mask, 0.0), case(f"{m}/vpred"))
            if not mask.any():
                del ours["grad_new_logprobs"]  # TRL's is 0 · (1/0) there; the masks stop it before the weights
            yield from compare(case, m, 2, {k: v for k, v in ours.items() if k not in ("new_logprobs", "vpred")})


def recorded(case: Case, u: str, rows: Tensor) -> Replay:
    """The recorded tensors of some rows, as the update takes them."""
    mask, value_mask = ~case(f"{u}/padding_mask")[rows], ~case(f"{u}/padding_mask_p1")[rows]
    logps, ref_logps = (case(f"{u}/{name}")[rows].masked_fill(~mask, 0.0) for name in ("logprobs", "ref_logprobs"))
    names = ("rewards", "advantages_before_whitening", "advantages", "returns")
    estimated = advantages.Advantages(*(case(f"{u}/{name}")[rows] for name in names))
    batch, values = Batch(mask, mask, value_mask), case(f"{u}/values")[rows]
    return Replay(Experience(batch, logps, ref_logps, values, estimated, None), mask)

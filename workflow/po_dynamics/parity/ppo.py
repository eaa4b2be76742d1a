"""Replays golden values of TRL 1.12's PPOTrainer through the production functions, with the switches that restore TRL.

Three independent levels: (1) roll-out tensors → advantages, (2) log-probs and values → losses and gradients,
(3) initial weights and sampled tokens → the whole trajectory (`parity_trajectory`). Only TRL's reading of token ids is
rebuilt here (lengths from the first pad id, left-padded attention, averages over padding); the rest is what trains.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from po_dynamics.errors import InputError
from po_dynamics.models.batches import Batch
from po_dynamics.objectives.registry import bind
from po_dynamics.objectives.tokens import Tokens
from po_dynamics.ppo import advantages
from po_dynamics.ppo.advantages import Advantages
from po_dynamics.ppo.experience import Experience, assess
from po_dynamics.ppo.settings import PPOSettings
from po_dynamics.ppo.update import surrogate, value_terms

Error = tuple[str, str, float]
INVALID = 1.0  # what TRL writes over the log-probs of padding


def replay_ppo(directory: Path) -> Iterator[Error]:
    """(case, quantity, largest error) of every `<case>.json` with an `.npz` in a directory.

    The error is |ours − golden| / max(1, |golden|), maximal over the updates and micro-batches of the case.
    """
    from po_dynamics.parity.trajectory import Trajectory

    for path in sorted(directory.glob("*.json")):
        if not path.with_suffix(".npz").is_file():
            continue
        case = Case.read(path)
        worst: dict[str, float] = {}
        for quantity, error in (*level_1(case), *level_2(case), *Trajectory(case)()):
            worst[quantity] = max(error, worst.get(quantity, 0.0))
        yield from ((path.stem, quantity, error) for quantity, error in worst.items())


class Case:
    """A golden case: configuration, arrays in float64, and TRL's masks of an update."""

    def __init__(self, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        self.meta, self.arrays, self.config = meta, arrays, meta["config"]
        self.pad, self.stop, self.eos = meta["pad_token_id"], meta["stop_token_id"], meta["eos_token_id"]
        self.updates = range(meta["num_updates"])

    @classmethod
    def read(cls, path: Path) -> Case:
        meta = json.loads(path.read_text())
        if meta.get("world_size", 1) != 1:
            raise InputError(f"{path}: world_size is {meta['world_size']}: only cases of one process can be replayed")
        with np.load(path.with_suffix(".npz")) as arrays:
            return cls(meta, dict(arrays))

    def __call__(self, key: str) -> Tensor:
        if key not in self.arrays:
            raise InputError(f"golden case {self.meta.get('case')}: {key} is missing from the .npz")
        tensor = torch.as_tensor(self.arrays[key])
        return tensor.double() if tensor.is_floating_point() else tensor

    def micros(self, update: int) -> range:
        found = [key for key in self.arrays if key.startswith(f"u{update}/micro") and key.endswith("/inds")]
        return range(len(found))

    def steps_every(self, update: int) -> int:
        """Micro-batches per optimizer step: accelerate steps after each one of the last batch of the data loader."""
        micros = len(self.micros(update))
        wrapped = self.meta["optimizer_steps_per_update"][update] == micros
        return 1 if wrapped else self.config["gradient_accumulation_steps"]

    def settings(self, update: int = 0) -> PPOSettings:
        """The production settings that reproduce TRL in an update."""
        config, optimizer, steps = self.config, self.meta["optimizer"], len(self.updates)
        clipped = optimizer.get("gradient_clipping_applied", False)
        return PPOSettings(
            max_steps=steps,
            checkpoints=(0,),
            batch_size=len(self("u0/query_responses")),
            micro_batch_size=config["per_device_train_batch_size"],
            epochs=config["num_ppo_epochs"],
            mini_batches=config["num_mini_batches"],
            learning_rate=config["learning_rate"],
            max_prompt_length=1,
            max_new_tokens=config["response_length"],
            lr_schedule=str(optimizer.get("lr_scheduler", "linear")).split(".")[-1].lower(),  # type: ignore[arg-type]
            weight_decay=optimizer["weight_decay"][0],
            adam_epsilon=optimizer["eps"],
            max_grad_norm=optimizer["max_grad_norm_in_config"] if clipped else None,
            temperature=config["temperature"] + 1e-7,
            kl_coefficient=config["kl_coef"],
            kl_estimator=config["kl_estimator"],
            gamma=config["gamma"],
            gae_lambda=config["lam"],
            value_clip=config["cliprange_value"],
            value_coefficient=config["vf_coef"],
            missing_eos_penalty=config["missing_eos_penalty"],
            whiten_rewards=config["whiten_rewards"],
            score_position="after_eos",
            loss_norm="micro_mean",
            step_every=self.steps_every(update),
            accumulation=config["gradient_accumulation_steps"],
        )


class Reading(NamedTuple):
    """How TRL reads the sampled tokens of an update, (N, R); masks are True at what counts."""

    responses: Tensor  # cut at the first stop token, pad ids after it
    last_N: Tensor  # index of the last token; −1 where the first token is a pad
    ended_N: Tensor
    mask: Tensor
    value_mask: Tensor


def first_true(flags: Tensor) -> Tensor:
    """Index of the first True of each row; the width where there is none."""
    return torch.where(flags.any(1), flags.long().argmax(1), flags.shape[1])


def read(case: Case, update: int) -> Reading:
    sampled = case(f"u{update}/query_responses")[:, int(case(f"u{update}/context_length")) :]
    columns = torch.arange(sampled.shape[1])
    if case.stop is not None:
        sampled = sampled.masked_fill(columns > first_true(sampled == case.stop).unsqueeze(1), case.pad)
    last_N = first_true(sampled == case.pad) - 1
    mask, value_mask = columns <= last_N.unsqueeze(1), columns <= last_N.unsqueeze(1) + 1
    return Reading(sampled, last_N, (sampled == case.eos).any(1), mask, value_mask)


def worst(actual: Tensor, golden: Tensor) -> float:
    """Largest |actual − golden| / max(1, |golden|); equal NaNs agree, shapes must."""
    if actual.shape != golden.shape:
        return float("inf")
    error = (actual.double() - golden.double()).abs() / golden.double().abs().clamp(min=1.0)
    error = error.masked_fill(actual.isnan() & golden.isnan(), 0.0).nan_to_num(nan=float("inf"))
    return float(error.max()) if error.numel() else 0.0


def compare(case: Case, prefix: str, level: int, values: Mapping[str, Tensor]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        yield f"level {level}: {name}", worst(value, case(f"{prefix}/{name}"))


# ------------------------------------------------------------------------------- level 1: roll-out tensors → advantages


def estimate(
    case: Case, reading: Reading, scores_N: Tensor, logps: Tensor, ref_logps: Tensor, values: Tensor
) -> Experience:
    """The production path from raw tensors (N, R) to an experience of the responses alone."""
    settings, mask = case.settings(), reading.mask
    scores_N = advantages.penalise_missing_eos(scores_N, reading.ended_N, settings.missing_eos_penalty)
    columns_N = advantages.score_columns(reading.last_N, mask.shape[1], settings.score_position)
    return assess(
        Batch(reading.responses, mask, mask),
        reading.value_mask,
        columns_N,
        scores_N,
        logps.masked_fill(~mask, 0.0),
        ref_logps.masked_fill(~mask, 0.0),
        values.masked_fill(~reading.value_mask, 0.0),
        settings,
        settings.kl_coefficient,
    )


def level_1(case: Case) -> Iterator[tuple[str, float]]:
    for update in case.updates:
        u, reading, settings = f"u{update}", read(case, update), case.settings()
        raw = (case(f"{u}/{name}") for name in ("scores_raw", "logprobs_raw", "ref_logprobs_raw", "values_raw"))
        experience = estimate(case, reading, *raw)
        kl = advantages.kl_estimate(experience.old_logps_BT, experience.ref_logps_BT, settings.kl_estimator)
        scores_N = advantages.penalise_missing_eos(
            case(f"{u}/scores_raw"), reading.ended_N, settings.missing_eos_penalty
        )
        columns_N = advantages.score_columns(reading.last_N, kl.shape[1], settings.score_position)
        estimated = experience.advantages
        yield from compare(
            case,
            u,
            1,
            {
                "postprocessed_responses": reading.responses,
                "sequence_lengths": reading.last_N,
                "contain_eos_token": reading.ended_N,
                "padding_mask": ~reading.mask,
                "padding_mask_p1": ~reading.value_mask,
                "scores": scores_N,
                "logprobs": experience.old_logps_BT.masked_fill(~reading.mask, INVALID),
                "ref_logprobs": experience.ref_logps_BT.masked_fill(~reading.mask, INVALID),
                "values": experience.old_values_BT,
                "kl": kl,
                "non_score_reward": -settings.kl_coefficient * kl,
                "actual_end": columns_N,
                "rewards_before_whitening": advantages.token_rewards(kl, scores_N, columns_N, settings.kl_coefficient),
                "rewards": estimated.rewards_BT,
                "advantages_before_whitening": estimated.raw_BT,
                "returns": estimated.returns_BT,
                "advantages": estimated.whitened_BT,
            },
        )


# ----------------------------------------------------------------- level 2: log-probs and values → losses and gradients


def golden_experience(case: Case, u: str, rows: Tensor) -> Experience:
    """The recorded tensors of some rows, as the update takes them."""
    mask, value_mask = ~case(f"{u}/padding_mask")[rows], ~case(f"{u}/padding_mask_p1")[rows]
    logps, ref_logps = (case(f"{u}/{name}")[rows].masked_fill(~mask, 0.0) for name in ("logprobs", "ref_logprobs"))
    names = ("rewards", "advantages_before_whitening", "advantages", "returns")
    estimated = Advantages(*(case(f"{u}/{name}")[rows] for name in names))
    return Experience(Batch(mask, mask, mask), value_mask, logps, ref_logps, case(f"{u}/values")[rows], estimated, None)


def losses(case: Case, experience: Experience, logps: Tensor, values: Tensor) -> dict[str, Tensor]:
    """What TRL logs of a micro-batch, and the gradients of its loss, (rows, R)."""
    settings, mask = case.settings(), experience.batch.loss_mask_BT
    logps, values = logps.detach().requires_grad_(), values.detach().requires_grad_()
    tokens = Tokens(logps, experience.old_logps_BT, experience.advantages.whitened_BT, mask)
    terms = bind("ppo", {"epsilon": case.config["cliprange"]})(tokens, 0)
    errors = value_terms(values, experience, settings.value_clip)
    count, states = mask.sum(), experience.value_mask_BT.sum()
    policy_loss = surrogate(terms, logps, count.clamp(min=1).double())
    value_loss = errors.loss_BT.sum() / states
    policy_loss, value_loss = policy_loss.where(count > 0, torch.nan), value_loss  # TRL logs 0/0 for no tokens at all
    gradients = torch.autograd.grad(
        surrogate(terms, logps, count.clamp(min=1).double()) + settings.value_coefficient * value_loss, (logps, values)
    )
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


def level_2(case: Case) -> Iterator[tuple[str, float]]:
    for update in case.updates:
        for micro in case.micros(update):
            u, m = f"u{update}", f"u{update}/micro{micro}"
            experience = golden_experience(case, u, case(f"{m}/inds"))
            mask = experience.batch.loss_mask_BT
            ours = losses(case, experience, case(f"{m}/new_logprobs").masked_fill(~mask, 0.0), case(f"{m}/vpred"))
            if not mask.any():
                del ours["grad_new_logprobs"]  # TRL's is 0 · (1/0) there; the masks stop it before the weights
            yield from compare(case, m, 2, {k: v for k, v in ours.items() if k not in ("new_logprobs", "vpred")})

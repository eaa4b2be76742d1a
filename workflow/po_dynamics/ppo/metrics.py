"""What a PPO run tells: the settings' meaning, the numbers of a roll-out batch, the progress bar."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from tqdm import tqdm

from po_dynamics.objectives.components import components
from po_dynamics.objectives.components import groups as quantile_groups
from po_dynamics.ppo import advantages
from po_dynamics.ppo.experience import Experience, Rollouts
from po_dynamics.settings.online import Online


def of_rollouts(experience: Experience, rollouts: Rollouts) -> dict[str, float]:
    """Means over response tokens unless the name says otherwise; nats; padding never counts.

    `sampling_mismatch` is the mean of log q − log π over the sampled tokens: q the law they were drawn from (top-p, the
    engine's numerics), π the full softmax of the update. `entropy` is that of the full softmax (estimated by −log π
    where the engine does not tell).
    """
    mask_BT, estimated = experience.batch.loss_mask_BT, experience.advantages
    responses, scores_B = rollouts.responses, rollouts.scores_B
    tokens, rows = int(mask_BT.sum()), len(responses)
    logps_BT, ref_logps_BT = experience.old_logps_BT, experience.ref_logps_BT
    k1 = float(advantages.kl_estimate(logps_BT, ref_logps_BT, "k1").sum())
    k3 = float(advantages.kl_estimate(logps_BT, ref_logps_BT, "k3").sum())
    surprise = -float(logps_BT.sum())
    exact = [response.entropy for response in responses if response.entropy is not None]
    explained = advantages.explained_variance(experience.old_values_BT, estimated.returns_BT, mask_BT)
    return {
        "reward": float(scores_B.mean()),
        "reward_std": float(scores_B.std(unbiased=False)),
        "kl_per_token": k1 / tokens,
        "kl_per_response": k1 / rows,
        "kl_k3_per_token": k3 / tokens,
        "kl_k3_per_response": k3 / rows,
        "entropy": (sum(exact) if len(exact) == rows else surprise) / tokens,
        "sampling_mismatch": (sum(sum(response.logps) for response in responses) + surprise) / tokens,
        "response_length": tokens / rows,
        "eos_rate": sum(response.ended for response in responses) / rows,
        "explained_variance": float(explained),
        **_component_shares(experience, tokens),
    }


def _component_shares(experience: Experience, tokens: int) -> dict[str, float]:
    """Fractions of the tokens in POS, NEG and TOP, MID, BOT, and the mean raw advantage of the latter (Figure 3)."""
    mask_BT, estimated = experience.batch.loss_mask_BT, experience.advantages
    whitened_BT = estimated.whitened_BT
    groups = quantile_groups(whitened_BT.abs(), mask_BT, experience.quantiles)
    masks = components(whitened_BT >= 0, mask_BT) | groups
    shares = {f"fraction_{name}": float(part_BT.sum()) / tokens for name, part_BT in masks.items()}
    raw = {f"raw_advantage_{name}": float(advantages.masked_mean(estimated.raw_BT, m)) for name, m in groups.items()}
    return shares | raw


def announce(settings: Online, processes: int, prompts: str) -> None:
    """Prints what the settings amount to."""
    print(
        f"PPO: {settings.max_steps} updates of {settings.batch_size} episodes on {processes} process(es); global batch "
        f"{settings.batch_size // settings.mini_batches} responses per optimizer step, "
        f"{settings.epochs * settings.mini_batches} steps per update; "
        f"prompts of at most {settings.max_prompt_length} tokens: {prompts}",
        file=sys.stderr,
        flush=True,
    )


def progress(step: int, steps: int, shown: bool) -> tqdm:
    """A bar over the updates."""
    return tqdm(total=steps, initial=step, mininterval=5, desc="PPO", unit="update", disable=not shown)


def postfix(metrics: Mapping[str, float], episodes_per_second: float) -> dict[str, str]:
    """The numbers beside the bar."""
    return {
        "loss": f"{metrics['policy_loss']:.4f}",
        "reward": f"{metrics['reward']:.3f}",
        "kl": f"{metrics['kl_per_response']:.2f}",
        "episodes/s": f"{episodes_per_second:.1f}",
    }

"""GRPO: several roll-outs per prompt, advantages that compare them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny_ppo
import torch
from po_dynamics.errors import InputError
from po_dynamics.objectives.registry import bind
from po_dynamics.ppo import probe_rollouts
from po_dynamics.ppo import train as ppo_train
from po_dynamics.ppo.experience import Sources

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
SETTINGS = tiny_ppo.SETTINGS | {"rollouts_per_prompt": 4, "max_steps": 2, "checkpoints": [0, 2]}


def train(world: dict[str, Path], folder: Path, objective: str = "grpo", **changes: Any) -> pd.DataFrame:
    paths = [folder / name for name in ("output", "log", "state")]
    inputs = world["policy"], world["reward"], world["prompts"]
    ppo_train.train_online(*inputs, *paths, bind(objective, {"epsilon": 0.2}), SETTINGS | changes, 0)
    return pd.read_csv(folder / "log")


def test_training_compares_the_responses_to_one_prompt(
    world: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    learn = ppo_train.Run.learn

    def watch(run: ppo_train.Run, rollouts: Any, experience: Any, step: int) -> dict[str, float]:
        seen.append((rollouts, experience, run.kl_coefficient))
        return learn(run, rollouts, experience, step)

    monkeypatch.setattr(ppo_train.Run, "learn", watch)
    log = train(world, tmp_path)
    assert len(log) == 2
    assert (log["policy_grad_norm"] > 0).all()
    for rollouts, experience, coefficient in seen:
        ids = [prompt.id for prompt in rollouts.prompts]
        assert [ids[row] for row in (0, 4)] == sorted(set(ids), key=ids.index)
        assert all(ids[row] == ids[row - row % 4] for row in range(8))
        for start in (0, 4):
            assert len({tuple(r.ids) for r in rollouts.responses[start : start + 4]}) > 1
        kl_B = (experience.old_logps_BT - experience.ref_logps_BT).double().sum(1)
        ended_B = torch.tensor([response.ended for response in rollouts.responses])
        rewards_B = rollouts.scores_B.double() - (~ended_B).double() - coefficient * kl_B
        expected_B = torch.cat([(part - part.mean()) / (part.std() + 1e-4) for part in rewards_B.split(4)])
        mask_BT = experience.batch.loss_mask_BT
        for row in range(8):
            found = experience.advantages.whitened_BT[row][mask_BT[row]].double()
            torch.testing.assert_close(found, expected_B[row].expand_as(found), atol=1e-4, rtol=1e-4)
        assert not experience.advantages.whitened_BT[~mask_BT].any()


def test_probe_does_the_same(world: dict[str, Path], tmp_path: Path) -> None:
    train(world, tmp_path)
    sources = Sources(tmp_path / "output/step-2", world["reward"], world["policy"], world["prompts"])
    samples = probe_rollouts.fresh_rollouts(sources, 8, SETTINGS, 0, bind("grpo"))
    for group in (samples[:4], samples[4:]):
        assert len({sample.id for sample in group}) == 1
        advantages = torch.stack([sample.advantages_R[0] for sample in group])
        assert all((sample.advantages_R == first).all() for sample, first in zip(group, advantages, strict=True))
        assert float(advantages.mean()) == pytest.approx(0.0, abs=1e-5)
        assert float(advantages.std()) == pytest.approx(1.0, abs=1e-2)
    with pytest.raises(InputError, match=r"probe\.samples is 6, .* multiple of rollouts_per_prompt = 4"):
        probe_rollouts.fresh_rollouts(sources, 6, SETTINGS, 0, bind("grpo"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollouts_per_prompt": 1}, "grpo compares responses to one prompt: rollouts_per_prompt must be above 1"),
        ({"rollouts_per_prompt": 3}, "batch_size' is 8; it must be a multiple of rollouts_per_prompt, 3"),
        ({"rollouts_per_prompt": 0}, "rollouts_per_prompt' is 0; it must be at least 1"),
    ],
)
def test_groups_that_cannot_be(changes: dict[str, Any], message: str, world: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        train(world, tmp_path, **changes)


def test_other_objectives_may_repeat_prompts(world: dict[str, Path], tmp_path: Path) -> None:
    assert len(train(world, tmp_path, "ppo", rollouts_per_prompt=2)) == 2

"""Rewards of pairs, and training of the objectives that read them."""

import pandas as pd
import po_dynamics.training.offline_trainer  # noqa: F401 (once, before the forks)
import pytest
import torch
from po_dynamics.data.order import ShuffledRows
from po_dynamics.data.preferences import Pairs, read_rewards
from po_dynamics.errors import InputError
from po_dynamics.models import reward_models
from po_dynamics.training.preference_rewards import score_preferences
from po_dynamics.training.reference import read_reference
from safetensors.torch import load_file
from tiny_offline import assert_same_files, log_of, make_rewards, make_world, train
from toy import in_child, tiny_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

BETA = 0.3
SETTINGS = {"micro_batch_size": 4, "max_length": 32}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = make_world(tmp_path_factory.mktemp("world"))
    make_rewards(root)
    return root


def pairs_of(world):
    return Pairs(world / "preferences.arrow", 32)


def test_a_function_scores_both_responses(world):
    table = pd.read_parquet(world / "preferences.parquet")
    rewards = read_rewards(world / "rewards.parquet", table["id"].tolist())
    for row, both in zip(table.itertuples(), rewards, strict=True):
        assert both == tuple(len(response[0]["content"].split()) for response in (row.chosen, row.rejected))


def test_a_reward_model_scores_the_tokens_of_training(world, tmp_path):
    folder = tiny_folder(tmp_path / "reward", scorer=True, max_length=64)
    score_preferences(world / "sft", world / "preferences.arrow", folder, tmp_path / "r.parquet", SETTINGS)
    scorer = reward_models.load(folder, AutoTokenizer.from_pretrained(world / "sft"))
    for pair, both in zip(pairs_of(world), pd.read_parquet(tmp_path / "r.parquet").itertuples(), strict=True):
        ids = [pair.chosen_ids, pair.rejected_ids]
        expected = scorer([[]] * 2, [""] * 2, [pair.prompt_ids] * 2, ids)
        assert (both.id, both.chosen_reward) == (pair.id, pytest.approx(float(expected[0]), abs=1e-5))
        assert both.rejected_reward == pytest.approx(float(expected[1]), abs=1e-5)


def test_what_cannot_be_scored_or_read_is_named(world, tmp_path):
    with pytest.raises(InputError, match=r"toy:nothing: the reward of p0 is not finite \(40 responses\)"):
        score_preferences(world / "sft", world / "preferences.arrow", "toy:nothing", tmp_path / "r", SETTINGS)
    with pytest.raises(InputError, match=r"rewards.parquet has no rewards of pair x \(1 missing\); compute it again"):
        read_rewards(world / "rewards.parquet", ["p1", "x"])


def textbook(name, log_ratios, rewards):
    """Losses of the pairs (N,) from log-ratios and rewards of both responses, (2, N) each."""
    gap, difference = BETA * (log_ratios[0] - log_ratios[1]), rewards[0] - rewards[1]
    if name == "rda_posterior":
        return (gap - difference) ** 2
    return torch.nn.functional.binary_cross_entropy_with_logits(gap, difference.sigmoid(), reduction="none")


@pytest.mark.parametrize("name", ["rda_posterior", "pra_posterior"])
def test_a_step_takes_the_gradient_of_the_textbook_loss(world, tmp_path, name):
    settings = {"max_steps": 1, "checkpoints": [1], "max_grad_norm": 1e9, "warmup_ratio": 0.0}
    rewards = world / "rewards.parquet"
    root = train(world, tmp_path, objective=name, parameters={"beta": BETA}, rewards=rewards, **settings)
    shuffled = ShuffledRows(pairs_of(world), 8, 0)
    pairs = [shuffled[i] for i in range(8)]
    ids = [pair.id for pair in pairs]
    references = torch.tensor(read_reference(world / "reference.parquet", ids)).T
    model = AutoModelForCausalLM.from_pretrained(world / "sft", dtype=torch.float32).eval()
    logps = torch.stack([torch.stack([logp(model, p, r) for p in pairs]) for r in ("chosen_ids", "rejected_ids")])
    loss = textbook(name, logps - references, torch.tensor(read_rewards(rewards, ids)).T).mean()
    loss.backward()
    assert log_of(root)[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    second = load_file(root / "checkpoints/step-1/exp_avg_sq.safetensors")
    for key, parameter in model.named_parameters():
        torch.testing.assert_close((second[key] / 0.001).sqrt(), parameter.grad.abs(), rtol=1e-3, atol=1e-5)


def logp(model, pair, role):
    response = getattr(pair, role)
    logits = model(torch.tensor([[*pair.prompt_ids, *response]])).logits[0, -len(response) - 1 : -1]
    return logits.log_softmax(-1)[range(len(response)), response].sum()


def test_without_rewards_training_says_what_is_missing(world, tmp_path):
    with pytest.raises(InputError, match=r"rda_posterior needs the rewards of both .* \(rule score_preferences\)"):
        train(world, tmp_path, objective="rda_posterior")


@pytest.mark.e2e
def test_killed_and_resumed_is_the_same(world, tmp_path):
    settings = {"objective": "pra_posterior", "rewards": world / "rewards.parquet", "max_steps": 30}
    settings |= {"save_every": 4, "checkpoints": [0, 30]}
    assert in_child(lambda: train(world, tmp_path / "whole", **settings)) == 0
    broken = lambda: train(world, tmp_path / "broken", **settings)  # noqa: E731
    assert in_child(broken, signal_after=0.4) == -9
    assert (tmp_path / "broken/state").exists()
    assert in_child(broken) == 0
    assert_same_files(tmp_path / "whole", tmp_path / "broken")

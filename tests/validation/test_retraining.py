"""Trainings that leave something out, in the toy universe: what differs, what is stored, and going on after a kill."""

import pandas as pd
import pytest
import tiny_offline
from po_dynamics.data.preferences import Pairs
from po_dynamics.evaluation.responses import evaluate_responses, final_responses
from po_dynamics.models.batches import collate, token_logps
from po_dynamics.models.loading import load_model
from po_dynamics.objectives.registry import bind
from po_dynamics.training.offline import train_offline
from po_dynamics.validation.halves import FullTraining, half, train_halves
from po_dynamics.validation.left_out import Interval, retrain_without
from po_dynamics.validation.losses import response_losses
from toy import write_prompts, write_tokens

SETTINGS = {**tiny_offline.SETTINGS, "lr_schedule": "constant", "warmup_ratio": 0.0, "micro_batch_size": 8}
RESPONSES = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tiny_offline.make_world(tmp_path_factory.mktemp("world"))
    prompts = write_tokens(write_prompts(root / "prompts.parquet", 8), root / "sft", "eval_prompts")
    tiny_offline.train(root, root / "run", lr_schedule="constant", warmup_ratio=0.0, micro_batch_size=8)
    final = root / "final.parquet"
    final_responses(root / "run/checkpoints/step-6", prompts, final, RESPONSES, n=6, seed=0)
    evaluate_responses({0: root / "sft"}, root / "sft", None, prompts, root / "sft.parquet", RESPONSES)
    return root


def files(world):
    return {"reference": world / "reference.parquet"}


def retrain(world, folder, train=train_offline, arms=None):
    interval = Interval(
        start=world / "run/checkpoints/step-3",
        first_step=3,
        last_step=6,
        final_responses=world / "final.parquet",
        sft=world / "sft",
        eval_prompts=world / "prompts.arrow",
        baseline=world / "sft.parquet",
        judge="gold",
        responses=RESPONSES,
    )
    about = {"init": interval.start, "preferences": world / "preferences.arrow", **files(world)}
    retrain_without(interval, train, about, arms or ARMS, SETTINGS, 0, folder / "output", folder / "state")
    return {path.stem: pd.read_parquet(path) for path in (folder / "output").iterdir()}


ARMS = {
    "TOT": bind("dpo", {"beta": 0.1}),
    "NEG": bind("dpo_damped", {"beta": 0.1, "neg": 0.0}),
    "same": bind("dpo_damped", {"beta": 0.1}),
}


def test_arms_differ_by_what_is_left_out_alone(world, tmp_path):
    tables = retrain(world, tmp_path)
    assert set(tables) == {"losses", "judged", "rates"}
    losses = tables["losses"].pivot(index="id", columns="arm", values="nll")
    assert len(losses) == 6
    pd.testing.assert_series_equal(losses["same"], losses["TOT"], check_names=False)
    assert (losses["NEG"] - losses["TOT"]).abs().min() > 1e-4
    again = tiny_offline.train(
        world, tmp_path / "by_hand", init=world / "run/checkpoints/step-3", first_step=3, **ends()
    )
    by_hand = response_losses(again / "checkpoints/step-6", world / "final.parquet").set_index("id")["nll"].sort_index()
    pd.testing.assert_series_equal(by_hand, losses["TOT"], check_names=False)
    assert tables["judged"].groupby("arm").size().to_dict() == dict.fromkeys(ARMS, 8)
    assert tables["rates"].groupby("arm")["step"].apply(list).to_dict() == {arm: [4, 5, 6] for arm in ARMS}
    assert (tables["rates"]["learning_rate"] == 3e-3).all()
    assert not (tmp_path / "state").exists()


def ends():
    return {"lr_schedule": "constant", "warmup_ratio": 0.0, "micro_batch_size": 8, "checkpoints": [6]}


def test_a_killed_job_goes_on_and_ends_the_same(world, tmp_path):
    whole = retrain(world, tmp_path / "whole")
    trained = []

    def dies(**arguments):
        if len(trained) == 1:
            raise KeyboardInterrupt
        train_offline(**arguments)
        trained.append(arguments["objective"].name)

    with pytest.raises(KeyboardInterrupt):
        retrain(world, tmp_path / "broken", train=dies)

    def counted(**arguments):
        trained.append(arguments["objective"].name)
        train_offline(**arguments)

    tables = retrain(world, tmp_path / "broken", train=counted)
    assert trained == ["dpo", "dpo_damped", "dpo_damped"]  # the finished arm is not trained again
    for name, table in whole.items():
        pd.testing.assert_frame_equal(table, tables[name])


def test_trainings_on_halves_see_their_half_only(world, tmp_path):
    seen = {}

    def recorded(**arguments):
        seen[arguments["preferences"].stem] = Pairs(arguments["preferences"], SETTINGS["max_length"]).ids
        train_offline(**arguments)

    full = FullTraining(
        init=world / "sft",
        preferences=world / "preferences.arrow",
        objective=bind("dpo", {"beta": 0.1}),
        settings={**SETTINGS, "max_steps": 2, "checkpoints": [0, 1, 2]},
        seed=0,
        final_responses=world / "final.parquet",
        **files(world),
    )
    train_halves(full, recorded, [3, 5], 7, tmp_path / "output", tmp_path / "state")
    ids = pd.read_parquet(world / "preferences.parquet")["id"]
    members = pd.read_parquet(tmp_path / "output/members.parquet").groupby("arm")["pair"].apply(list)
    for subset in (3, 5):
        assert members[str(subset)] == seen[str(subset)] == ids[half(len(ids), subset, 7)].tolist()
    losses = pd.read_parquet(tmp_path / "output/losses.parquet").pivot(index="id", columns="arm", values="nll")
    assert losses.shape == (6, 2)
    assert (losses["3"] != losses["5"]).all()


def test_losses_are_those_of_the_model(world):
    found = response_losses(world / "run/checkpoints/step-6", world / "final.parquet")
    final = pd.read_parquet(world / "final.parquet")
    model = load_model(world / "run/checkpoints/step-6")
    for row, nll in zip(final.itertuples(), found["nll"], strict=True):
        batch = collate([list(row.prompt_ids)], [list(row.response_ids)], 0)
        assert -float(token_logps(model, batch).sum()) == pytest.approx(nll, abs=1e-4)
    assert found["id"].tolist() == final["id"].tolist()

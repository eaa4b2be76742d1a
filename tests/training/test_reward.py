"""The reward model: its loss, its pooling, held-out prompts, exact resume, bad input."""

import json
import math
import random
import shutil
import signal

import numpy as np
import pandas as pd
import pytest
import torch
import toy
from po_dynamics.data.order import ShuffledRows
from po_dynamics.errors import InputError
from po_dynamics.models import hub, reward_models
from po_dynamics.models.batches import collate
from po_dynamics.models.critic import Critic, final_values, read_normalisation
from po_dynamics.models.loading import load_model
from po_dynamics.models.tokenizers import load_tokenizer
from po_dynamics.storage import state
from po_dynamics.training import published_reward, reward

SETTINGS = {
    "source": "train", "max_steps": 20, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 1e-2, "save_every": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward")
    toy.tiny_folder(folder / "sft")
    toy.write_tokens(toy.write_preferences(folder / "preferences.parquet", 80), folder / "sft")
    return folder


def train(inputs, folder, **changes):
    paths = inputs / "sft", inputs / "preferences.arrow", folder / "reward", folder / "state"
    reward.train_reward(*paths, SETTINGS | changes)


@pytest.fixture(scope="module", autouse=True)
def small_normalisation():
    patch = pytest.MonkeyPatch()
    patch.setattr(reward, "SAMPLES", 24)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    import trl  # noqa: F401  (so that every forked child has it)

    assert toy.in_child(lambda: train(inputs, folder)) == 0
    return folder / "reward"


def rows_of(inputs):
    return reward.Comparisons.of(inputs / "preferences.arrow", 128)[0]


def test_learns_the_preference(whole):
    metrics = json.loads((whole / "metrics.json").read_text())
    assert metrics["accuracy"] == 1.0  # the fox is preferred to the owl
    assert metrics["train"] + metrics["held_out"] == 80
    assert metrics["margin"] > 0.5
    log = pd.read_csv(whole / "training.csv")
    assert log["step"].tolist() == list(range(1, 21))
    assert {"loss", "accuracy", "margin"} <= set(log.columns)


def test_first_loss_is_bradley_terry(inputs, whole):
    train_rows, _ = reward.split(rows_of(inputs), 0)
    lengths = [max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in train_rows]
    order = ShuffledRows(train_rows, 160, 0, lengths, 8)
    model = reward.new_classifier(inputs / "sft", 0)
    total = 0.0
    for i in range(8):
        chosen, rejected = (
            model(input_ids=torch.tensor([order[i][role]])).logits.item() for role in ("chosen_ids", "rejected_ids")
        )
        total += math.log1p(math.exp(rejected - chosen))
    assert pd.read_csv(whole / "training.csv")["loss"][0] == pytest.approx(total / 8, rel=1e-5)


def test_pooling_reads_eos(inputs, whole):
    """In a padded batch, Hugging Face's pooling, the critic and our scores all read the last token, which is EOS."""
    tokenizer, model = load_tokenizer(whole), Critic.from_pretrained(whole).model
    sequences = [row["chosen_ids"] for row in rows_of(inputs)][:12]
    assert len({len(ids) for ids in sequences}) > 3
    assert all(ids[-1] == tokenizer.eos_token_id for ids in sequences)
    batch = collate([ids[:-1] for ids in sequences], [ids[-1:] for ids in sequences], tokenizer.pad_token_id)
    pooled = model(input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask_BL).logits.squeeze(-1)
    ours = reward.scores(model, sequences, tokenizer.pad_token_id, 5)
    torch.testing.assert_close(pooled, ours)
    torch.testing.assert_close(final_values(Critic(model), batch), ours)
    before_eos = reward.scores(model, [ids[:-1] for ids in sequences], tokenizer.pad_token_id, 5)
    assert (before_eos - ours).abs().min() > 1e-4


def test_scores_are_normalised_where_a_scorer_loads_it(inputs, whole):
    scale = json.loads((whole / "normalisation.json").read_text())
    model, tokenizer = Critic.from_pretrained(whole).model, load_tokenizer(whole)
    rows = [*rows_of(inputs)][:6]
    raw = reward.scores(model, [row["chosen_ids"] for row in rows], tokenizer.pad_token_id, 3)
    table = pd.read_parquet(inputs / "preferences.parquet")[:6]
    texts = [message[0]["content"] for message in table["chosen"]]
    normalised = reward_models.load(whole, tokenizer)([list(prompt) for prompt in table["prompt"]], texts)
    torch.testing.assert_close(normalised, (raw - scale["mean"]) / scale["std"])
    assert scale["n"] == 24


def test_held_out_prompts_are_not_trained_on(inputs):
    table = rows_of(inputs).table
    rows = reward.Comparisons(table, np.array([*range(80), *range(40)]))  # several pairs of one prompt
    train_rows, held_out = reward.split(rows, 0)
    prompts = {tuple(row["prompt_ids"]) for row in held_out}
    assert len(prompts) == round(0.05 * len({tuple(row["prompt_ids"]) for row in rows})) >= 1
    assert not prompts & {tuple(row["prompt_ids"]) for row in train_rows}
    assert len(train_rows) + len(held_out) == 120


def test_head_depends_on_the_seed_only(inputs):
    one, same, other = (reward.new_classifier(inputs / "sft", seed) for seed in (0, 0, 1))
    assert torch.equal(one.score.weight, same.score.weight)
    assert not torch.equal(one.score.weight, other.score.weight)
    policy = load_model(inputs / "sft", device="cpu")
    assert torch.equal(one.gpt_neox.embed_in.weight, policy.gpt_neox.embed_in.weight)


def test_long_pairs_are_dropped_and_counted(inputs, capsys):
    lengths = [max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows_of(inputs)]
    rows, dropped = reward.Comparisons.of(inputs / "preferences.arrow", 12)
    assert dropped == sum(length > 12 for length in lengths) == 80 - len(rows) > 0
    assert f"whole in 12 tokens: {len(rows)} rows used, {dropped} too long" in capsys.readouterr().err


@pytest.mark.e2e
def test_killed_at_random_and_terminated_ends_the_same(inputs, whole, tmp_path):
    times = random.Random(2)
    for signal_number in (signal.SIGKILL, signal.SIGTERM):
        toy.in_child(lambda: train(inputs, tmp_path), signal_after=times.uniform(0.4, 1.5), signal_number=signal_number)
    assert toy.in_child(lambda: train(inputs, tmp_path)) == 0
    assert toy.same_files(whole, tmp_path / "reward") == []


@pytest.mark.e2e
def test_killed_in_the_middle_ends_the_same(inputs, whole, tmp_path, monkeypatch):
    append = state.TrainingLog.append
    monkeypatch.setattr(
        state.TrainingLog, "append", lambda log, step, row: toy.die() if step == 14 else append(log, step, row)
    )
    assert toy.in_child(lambda: train(inputs, tmp_path)) == -signal.SIGKILL
    assert [f.name for f in (tmp_path / "state").glob("checkpoint-*")] == ["checkpoint-8"]
    monkeypatch.undo()
    assert toy.in_child(lambda: train(inputs, tmp_path)) == 0
    assert toy.same_files(whole, tmp_path / "reward") == []


def one_prompt(folder):
    table = pd.read_parquet(folder / "preferences.parquet")
    table["prompt"] = [toy.user("the fox ?")] * len(table)
    table.to_parquet(folder / "preferences.parquet")
    toy.write_tokens(folder / "preferences.parquet", folder / "sft")


@pytest.mark.parametrize(
    ("damage", "changes", "message"),
    [
        (lambda f: toy.tiny_tokenizer(pad="<eos>").save_pretrained(f / "sft"), {}, "the pad token is '<eos>'"),
        (lambda f: (f / "sft/model.safetensors").unlink(), {}, "has no weights"),
        (lambda f: None, {"max_length": 5}, "0 pairs fit into 5 tokens"),
        (one_prompt, {}, "share one prompt"),
    ],
)
def test_bad_input(inputs, tmp_path, damage, changes, message):
    shutil.copytree(inputs, tmp_path / "in")
    damage(tmp_path / "in")
    with pytest.raises(InputError, match=message):
        train(tmp_path / "in", tmp_path, **changes)
    assert not (tmp_path / "reward").exists()


def test_download_copies_a_local_folder(whole, tmp_path):
    hub.download({"source": "hub", "kind": "sequence_classification", "name": str(whole)}, tmp_path / "rm")
    assert toy.same_files(whole, tmp_path / "rm") == ["source.json"]


def test_raw_scores_are_raw_wherever_the_model_is_from(inputs, whole, tmp_path):
    """`normalise: false` of a trained model, and of a published one, even if it brings a normalisation."""
    done = toy.in_child(lambda: train(inputs, tmp_path, normalise=False))
    assert done == 0
    hub.download_reward({"name": str(whole)}, tmp_path / "published")
    assert read_normalisation(whole) != (0.0, 1.0)
    rows = [*rows_of(inputs)][:6]
    sequences, tokenizer = [row["chosen_ids"] for row in rows], load_tokenizer(whole)
    raw = reward.scores(Critic.from_pretrained(whole).model, sequences, tokenizer.pad_token_id, 3)
    prompts = [[{"role": "user", "content": ""}]] * 6
    for folder in (tmp_path / "reward", tmp_path / "published"):
        assert read_normalisation(folder) == (0.0, 1.0)
        scores = reward_models.load(folder, tokenizer)(
            prompts, [""] * 6, [ids[:-1] for ids in sequences], [ids[-1:] for ids in sequences]
        )
        torch.testing.assert_close(scores, raw)


def test_a_published_model_gets_the_unit_of_a_trained_one(inputs, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(published_reward, "SAMPLES", 64)
    law = {"micro_batch_size": 4, "temperature": 1.0, "top_p": 1.0, "max_prompt_length": 64, "max_new_tokens": 8}
    hub.download_reward({"name": str(whole)}, tmp_path / "published")
    paths = inputs / "sft", inputs / "preferences.arrow", tmp_path / "published"
    published_reward.normalise_reward(*paths, tmp_path / "reward", law)
    scale = json.loads((tmp_path / "reward/normalisation.json").read_text())
    assert scale["n"] == 64
    trained = json.loads((whole / "normalisation.json").read_text())  # of other prompts and lengths
    assert scale["std"] == pytest.approx(trained["std"], rel=0.5)
    assert read_normalisation(tmp_path / "published") == (0.0, 1.0)
    tokenizer, prompts = load_tokenizer(whole), [[{"role": "user", "content": "the fox"}]]
    raw, scaled = (
        reward_models.load(tmp_path / name, tokenizer)(prompts, ["is red"]) for name in ("published", "reward")
    )
    torch.testing.assert_close(scaled, (raw - scale["mean"]) / scale["std"])
    assert (tmp_path / "reward/model.safetensors").samefile(tmp_path / "published/model.safetensors")
    with pytest.raises(InputError, match=r"none of .* prompts has at most 1 tokens"):
        published_reward.normalise_reward(*paths, tmp_path / "none", law | {"max_prompt_length": 1})

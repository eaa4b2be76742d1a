"""Offline training on a tiny random model: against TRL, outputs, precision, bad input."""

import json
import math

import pyarrow.parquet as pq
import pytest
import torch
from po_dynamics.data.order import ShuffledRows
from po_dynamics.data.preferences import Pairs
from po_dynamics.errors import InputError
from po_dynamics.training.reference import compute_reference, read_reference
from safetensors.torch import load_file
from tiny_offline import (
    REFERENCE,
    SETTINGS,
    assert_same_files,
    log_of,
    make_model,
    make_pairs,
    make_world,
    train,
    weights,
)
from toy import write_tokens
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    return train(world, tmp_path_factory.mktemp("run"))


# ---------------------------------------------------------------------------------------------------- data, reference


def trl_dataset(world):
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer

    arguments = DPOConfig(
        str(world / "trl"),
        max_length=SETTINGS["max_length"],
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=6,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=2,
        weight_decay=0.01,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        precompute_ref_log_probs=True,
        train_sampling_strategy="sequential",
    )
    data = load_dataset("parquet", data_files=str(world / "preferences.parquet"), cache_dir=str(world / "cache"))[
        "train"
    ]
    shuffled = ShuffledRows(range(len(data)), 48, 0)
    order = [shuffled[i] for i in range(48)]
    config = AutoModelForCausalLM.from_pretrained(world / "sft").config
    config.attention_dropout = 0.0  # TRL switches off dropout modules only
    model = AutoModelForCausalLM.from_pretrained(world / "sft", config=config, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(world / "sft")
    return DPOTrainer(model=model, args=arguments, train_dataset=data.select(order), processing_class=tokenizer)


@pytest.fixture(scope="module")
def trl(world):
    trainer = trl_dataset(world)
    trainer.train()
    return trainer


def test_pairs_and_reference_are_those_of_trl(world, trl):
    pairs = {pair.id: pair for pair in Pairs(world / "preferences.arrow", 32)}
    reference = dict(zip(pairs, read_reference(world / "reference.parquet", list(pairs)), strict=True))
    assert len(trl.train_dataset) == 48
    for row in trl.train_dataset:
        pair = pairs[row["id"]]
        assert (pair.prompt_ids, pair.chosen_ids) == (row["prompt_ids"], row["chosen_ids"])
        assert pair.rejected_ids == row["rejected_ids"]
        assert reference[pair.id] == pytest.approx((row["ref_chosen_logps"], row["ref_rejected_logps"]), abs=1e-5)


def test_uncontrolled_training_is_trl_s(run, trl):
    logged = [row for row in trl.state.log_history if "grad_norm" in row]
    assert len(logged) == 6
    for ours, theirs in zip(log_of(run), logged, strict=True):
        for key in ("chosen", "rejected", "margins"):
            assert ours[f"rewards_{key}"] == pytest.approx(theirs[f"rewards/{key}"], abs=2e-6)
        for key in ("loss", "grad_norm", "learning_rate"):
            assert ours[key] == pytest.approx(theirs[key], abs=2e-6)
        if ours["step"] > 2:  # before the first update margins are 0 up to rounding
            assert ours["rewards_accuracies"] == theirs["rewards/accuracies"]
    final = AutoModelForCausalLM.from_pretrained(run / "checkpoints/step-6").state_dict()
    for name, parameter in trl.model.named_parameters():
        if "query_key_value.bias" not in name:  # key biases have no gradient; AdamW amplifies their rounding
            torch.testing.assert_close(final[name], parameter.detach(), atol=2e-6, rtol=0)


def test_reference_is_read_by_id(world, tmp_path):
    table = pq.read_table(world / "reference.parquet")
    ids = table["id"].to_pylist()
    pq.write_table(table.take(list(reversed(range(len(ids))))), tmp_path / "r.parquet")
    assert read_reference(tmp_path / "r.parquet", ids) == read_reference(world / "reference.parquet", ids)
    pq.write_table(table.slice(1), tmp_path / "short.parquet")
    with pytest.raises(InputError, match=r"no log-probs of pair p0 \(1 missing\)"):
        read_reference(tmp_path / "short.parquet", ids)


# --------------------------------------------------------------------------------------------------------- the outputs


def test_outputs(world, run):
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-0", "step-2", "step-3", "step-6"]
    assert not (run / "state").exists()
    assert [row["step"] for row in log_of(run)] == [1, 2, 3, 4, 5, 6]
    first = log_of(run)[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["coefficient_chosen"] == pytest.approx(0.05, abs=1e-5)
    assert first["coefficient_rejected"] == pytest.approx(-0.05, abs=1e-5)
    initial = load_file(world / "sft" / "model.safetensors")
    assert all(torch.equal(initial[name], value) for name, value in weights(run, 0).items())
    assert not (run / "checkpoints/step-0/optimizer.json").exists()
    moments = load_file(run / "checkpoints/step-3/exp_avg_sq.safetensors")
    loaded = AutoModelForCausalLM.from_pretrained(run / "checkpoints/step-3")
    assert {name: value.shape for name, value in moments.items()} == {n: p.shape for n, p in loaded.named_parameters()}
    assert json.loads((run / "checkpoints/step-3/optimizer.json").read_text())["step"] == 3
    AutoTokenizer.from_pretrained(run / "checkpoints/step-3")


def test_same_seed_same_files(world, run, tmp_path):
    again = train(world, tmp_path)
    assert_same_files(run, again)


def test_accumulation_changes_nothing_but_rounding(world, run, tmp_path):
    whole = train(world, tmp_path, micro_batch_size=8)
    assert len(log_of(run)) == 6
    for a, b in zip(log_of(run), log_of(whole), strict=True):
        assert {k: v for k, v in a.items() if k != "rewards_accuracies"} == pytest.approx(
            {k: v for k, v in b.items() if k != "rewards_accuracies"}, abs=1e-5
        )  # margins of 0 ± rounding, at the start, count either way


def test_first_step_goes_on(world, run, tmp_path):
    settings = {"checkpoints": [0, 2, 3, 6]}
    root = train(
        world, tmp_path, init=run / "checkpoints/step-3", first_step=3, objective="dpo_no_pos",
        parameters={"beta": 0.1, "after": 4}, **settings,
    )  # fmt: skip
    assert sorted(p.name for p in (root / "checkpoints").iterdir()) == ["step-3", "step-6"]
    rows, parent = log_of(root), log_of(run)
    assert [row["step"] for row in rows] == [4, 5, 6]
    assert [row["learning_rate"] for row in rows] == [row["learning_rate"] for row in parent[3:]]
    assert rows[0]["loss"] == pytest.approx(parent[3]["loss"], abs=1e-5)  # the same batch
    assert [row["coefficient_chosen"] > 0 for row in rows] == [True, False, False]
    assert 0 < max((weights(root, 6)[k] - v).abs().max() for k, v in weights(run, 3).items()) < 0.05


def test_without_sft(world, tmp_path):
    make_model(tmp_path / "base", seed=3)
    compute_reference(tmp_path / "base", world / "preferences.arrow", tmp_path / "reference.parquet", REFERENCE)
    a = read_reference(tmp_path / "reference.parquet", ["p0"])
    assert a != read_reference(world / "reference.parquet", ["p0"])


# ----------------------------------------------------------------------------------------------- precision, memory


def test_master_weights_move_at_a_tiny_learning_rate(world, tmp_path):
    root = train(
        world, tmp_path, precision="bf16", learning_rate=5e-7, warmup_ratio=0.0, max_steps=2, checkpoints=[0, 2]
    )
    before, after = weights(root, 0), weights(root, 2)
    assert {value.dtype for value in after.values()} == {torch.float32}
    name = "gpt_neox.layers.0.mlp.dense_h_to_4h.weight"
    assert (after[name] != before[name]).float().mean() > 0.9
    assert (after[name].bfloat16() != before[name].bfloat16()).float().mean() < 0.1  # bf16 weights would have stayed


def test_gradient_checkpointing_is_on(world, tmp_path, monkeypatch):
    from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXMLP

    calls, forward = [], GPTNeoXMLP.forward
    monkeypatch.setattr(GPTNeoXMLP, "forward", lambda self, x: calls.append(1) or forward(self, x))
    root = train(world, tmp_path, gradient_checkpointing=True, max_steps=1, checkpoints=[1])
    assert len(calls) == 8  # two layers, two micro-batches, forward and again in backward
    assert log_of(root)[0]["grad_norm"] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 6}, r"'offline.batch_size' is 6; it must be a multiple of micro_batch_size, 4"),
        ({"checkpoints": [0, 7]}, r"'offline.checkpoints' is 7; it must be at most max_steps, 6"),
        ({"max_length": 65}, r"max_length = 65 is above the model's context of 64"),
        ({"max_length": 3}, r"no prompt leaves room for a response in 3 tokens; raise max_length"),
        ({"first_step": 6}, r"max_steps = 6 must be above the step 6"),
    ],
)
def test_bad_settings(world, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        train(world, tmp_path, **settings)
    assert list(tmp_path.iterdir()) == []


def test_truncation_is_counted(world, tmp_path, capsys):
    rows = make_pairs(tmp_path / "p.parquet", chosen=[{"role": "assistant", "content": "fox " * 50}])
    pairs = Pairs(write_tokens(rows, world / "sft"), 32)
    assert "in max_length = 32 tokens: 20 rows used, 1 cut at the end" in capsys.readouterr().err
    assert len(pairs[3].prompt_ids) + len(pairs[3].chosen_ids) == 32
    assert pairs.lengths.tolist() == [[len(p[1]) + len(p[2]), len(p[1]) + len(p[3])] for p in pairs]


def test_a_prompt_that_leaves_no_room_is_left_out_and_stops_nothing(world, tmp_path, capsys):
    rows = make_pairs(tmp_path / "p.parquet", prompt=[{"role": "user", "content": "fox " * 50}])
    tokens = write_tokens(rows, world / "sft")
    compute_reference(world / "sft", tokens, tmp_path / "reference.parquet", REFERENCE)
    assert pq.read_table(tmp_path / "reference.parquet").num_rows == 19
    assert "p3" not in Pairs(tokens, 32).ids
    assert "19 rows used, 1 prompt too long" in capsys.readouterr().err
    with pytest.raises(InputError, match="no prompt leaves room for a response in 4 tokens; raise max_length"):
        Pairs(tokens, 4)


def test_no_weights(world, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"config\.json is missing"):
        train(world, tmp_path / "run", init=tmp_path / "empty")


def test_non_finite_loss_stops(world, tmp_path):
    with pytest.raises(InputError, match=r"the (loss|gradient norm) is (nan|inf) at step [23] \(sample ids: p\d+"):
        train(world, tmp_path, learning_rate=1e30, warmup_ratio=0.0, max_grad_norm=1e30)
    assert not (tmp_path / "checkpoints").exists()
    good = load_file(tmp_path / "state/checkpoints/step-0/model.safetensors")
    assert all(torch.isfinite(value).all() for value in good.values())

"""Data sets: the world's, the hub's schemas, tables with clear errors, on-policy preference pairs."""

from __future__ import annotations

import gzip
import hashlib
import json

import pyarrow.parquet as pq
import pytest
from po_dynamics.data.published import download_data
from po_dynamics.data.schema import COLUMNS
from po_dynamics.errors import InputError
from po_dynamics.storage.parquet import read_rows
from po_dynamics.world.datasets import write_world_data
from po_dynamics.world.facts import combination_split, parse_prompt
from po_dynamics.world.gold import gold_reward
from po_dynamics.world.on_policy import sample_preferences

SETTINGS = {
    "source": "world",
    "seed": 0,
    "pretraining": 200,
    "sft": 150,
    "preferences": 400,
    "on_policy_preferences": 0,
    "label_temperature": 0.4,
    "final_prompts": 60,
    "eval_prompts": 60,
}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    import datasets

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "data"
    write_world_data(folder, SETTINGS)
    return folder


def rows(path, *columns):
    return read_rows(path, columns)


def text(row, column="prompt"):
    assert len(row[column]) == 1
    return row[column][0]["content"]


# --------------------------------------------------------------------------------------------------------------- world


def test_world_data_has_the_promised_files(folder):
    sizes = {"pretraining": 200, "sft": 150, "preferences": 400, "final_prompts": 60, "eval_prompts": 60}
    for name, size in sizes.items():
        table = pq.read_table(folder / f"{name}.parquet")
        assert table.num_rows == size
        wanted = ["text"] if name == "pretraining" else ["id", *COLUMNS[name]]
        assert table.column_names == wanted
        if "id" in wanted:
            assert len(set(table["id"].to_pylist())) == size
    for row in rows(folder / "preferences.parquet", "prompt", "chosen", "rejected"):
        assert [row[c][0]["role"] for c in ("prompt", "chosen", "rejected")] == ["user", "assistant", "assistant"]
        assert row["chosen"] != row["rejected"]


def test_splits_are_disjoint(folder):
    names = {"sft": "sft", "preferences": "preferences", "final_prompts": "final", "eval_prompts": "eval"}
    prompts = {}
    for name, split in names.items():
        prompts[name] = {text(row) for row in rows(folder / f"{name}.parquet", "prompt")}
        assert {combination_split(parse_prompt(p)) for p in prompts[name]} == {split}
    for name in names:
        others = set().union(*(prompts[other] for other in names if other != name))
        assert not prompts[name] & others
    assert len(prompts["eval_prompts"]) == len(prompts["final_prompts"]) == 60


def test_same_seed_same_bytes_and_another_seed_other_prompts(folder, tmp_path):
    write_world_data(tmp_path / "same", SETTINGS)
    write_world_data(tmp_path / "other", {**SETTINGS, "seed": 1})
    for file in sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file()):
        assert (tmp_path / "same" / file).read_bytes() == (folder / file).read_bytes(), file
    assert (tmp_path / "other/sft.parquet").read_bytes() != (folder / "sft.parquet").read_bytes()


def test_labels_follow_the_gold_reward_with_noise(folder, tmp_path):
    def agreement(path):
        table = rows(path, "prompt", "chosen", "rejected")
        rewards = [[gold_reward(text(r), text(r, c)) for c in ("chosen", "rejected")] for r in table]
        decided = [chosen > rejected for chosen, rejected in rewards if chosen != rejected]
        return sum(decided) / len(decided)

    assert 0.8 < agreement(folder / "preferences.parquet") < 0.97
    for temperature, low, high in ((1e-6, 1.0, 1.0), (1e6, 0.4, 0.6)):
        output = tmp_path / str(temperature)
        write_world_data(output, {**SETTINGS, "label_temperature": temperature})
        assert low <= agreement(output / "preferences.parquet") <= high


def test_empty_or_impossible_sizes_are_refused_and_nothing_is_left(tmp_path):
    with pytest.raises(InputError, match=r"'data\.sft' is 0; it must be at least 1"):
        write_world_data(tmp_path / "data", {**SETTINGS, "sft": 0})
    with pytest.raises(InputError, match=r"data\.eval_prompts is 20000"):
        write_world_data(tmp_path / "data", {**SETTINGS, "eval_prompts": 20000})
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------------------------------- hub

USER, ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}
ULTRACHAT = [
    {"prompt": "Why?", "prompt_id": "a", "messages": [USER, ANSWER, USER, {**ANSWER, "content": "Still."}]},
    {"prompt": "Why?", "prompt_id": "b", "messages": [USER, ANSWER, USER]},
    {"prompt": "Why?", "prompt_id": "c", "messages": [USER]},
]
ULTRAFEEDBACK = [
    {"prompt": "Why?", "chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "No."}], "score_chosen": 9.0},
    {"prompt": "Why?", "chosen": [USER, ANSWER], "rejected": [USER, ANSWER], "score_chosen": 9.0},
    {"prompt": "Why?", "chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": ""}], "score_chosen": 9.0},
]
TURNS = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Name a:\n\n1. bird\n\nAssistant: "
HH = [{"chosen": TURNS + "Crow.", "rejected": TURNS + "Cat."}, {"chosen": TURNS + "Owl.", "rejected": TURNS + "Cat."}]
ALPACA = [
    {"dataset": "helpful_base", "instruction": f"Question {i}", "output": "x", "generator": "y"} for i in range(7)
]


def write_lines(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in table)


@pytest.fixture
def hub(tmp_path):
    """Local folders in the hub's layouts, and the settings that name them."""
    from datasets import Dataset, DatasetDict

    DatasetDict(train_sft=Dataset.from_list(ULTRACHAT), test_sft=Dataset.from_list(ULTRACHAT[:1])).save_to_disk(
        tmp_path / "ultrachat"
    )
    (tmp_path / "ultrafeedback/data").mkdir(parents=True)
    for split in ("train_prefs", "test_prefs"):
        Dataset.from_list(ULTRAFEEDBACK).to_parquet(tmp_path / f"ultrafeedback/data/{split}-00000-of-00001.parquet")
    write_lines(tmp_path / "hh/helpful-base/test.jsonl.gz", HH)
    write_lines(tmp_path / "hh/harmless-base/test.jsonl.gz", HH[:1])
    (tmp_path / "alpaca").mkdir()
    (tmp_path / "alpaca/alpaca_eval.json").write_text(json.dumps(ALPACA))
    digest = hashlib.sha256((tmp_path / "alpaca/alpaca_eval.json").read_bytes()).hexdigest()
    return {
        "source": "hub",
        "seed": 0,
        "sft": {"path": str(tmp_path / "ultrachat"), "split": "train_sft"},
        "preferences": {"path": str(tmp_path / "ultrafeedback"), "split": "train_prefs"},
        "final_prompts": {"path": str(tmp_path / "hh"), "data_dir": "helpful-base", "split": "test"},
        "eval_prompts": {"path": str(tmp_path / "alpaca"), "data_files": "alpaca_eval.json", "sha256": digest},
    }


def test_hub_schemas_become_the_common_schema(hub, tmp_path, capsys):
    output = tmp_path / "data"
    download_data(output, hub)
    assert rows(output / "sft.parquet", "id", "prompt", "completion") == [
        {"id": "sft-000000", "prompt": [USER, ANSWER, USER], "completion": [{**ANSWER, "content": "Still."}]},
        {"id": "sft-000001", "prompt": [USER], "completion": [ANSWER]},
    ]
    assert rows(output / "preferences.parquet", "id", "prompt", "chosen", "rejected") == [
        {"id": "preferences-000000", "prompt": [USER], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "No."}]}
    ]
    contents = [("user", "Hi"), ("assistant", "Hello."), ("user", "Name a:\n\n1. bird")]
    question = [{"role": role, "content": content} for role, content in contents]
    assert rows(output / "final_prompts.parquet", "id", "prompt") == [{"id": "final-000000", "prompt": question}]
    evaluation = rows(output / "eval_prompts.parquet", "id", "prompt")
    assert [text(row) for row in evaluation] == [f"Question {i}" for i in range(7)]
    assert "data.preferences: 1 of 3 rows" in capsys.readouterr().err
    about = json.loads((output / "sources.json").read_text())
    assert about["preferences"]["dropped"] == {"identical answers": 1, "empty text": 1}
    assert (about["sft"]["rows"], about["sft"]["used"], about["sft"]["dropped"]) == (3, 2, {"no answer": 1})
    assert about["final_prompts"]["dropped"] == {"repeated prompt": 1}
    assert (about["sft"]["path"], about["sft"]["split"]) == (hub["sft"]["path"], "train_sft")
    for name in COLUMNS:
        assert about[name]["sha256"] == hashlib.sha256((output / f"{name}.parquet").read_bytes()).hexdigest()


def test_downloaded_data_can_be_the_source(hub, tmp_path):
    download_data(tmp_path / "first", hub)
    again = {"seed": 0} | {name: {"path": str(tmp_path / f"first/{name}.parquet")} for name in COLUMNS}
    download_data(tmp_path / "second", again)
    for name, columns in COLUMNS.items():
        assert rows(tmp_path / f"first/{name}.parquet", *columns) == rows(tmp_path / f"second/{name}.parquet", *columns)


def test_limit_draws_rows_by_seed(hub, tmp_path):
    def ids(name, seed):
        download_data(tmp_path / name, {**hub, "seed": seed, "eval_prompts": hub["eval_prompts"] | {"limit": 3}})
        return [row["id"] for row in rows(tmp_path / name / "eval_prompts.parquet", "id")]

    assert len(ids("a", 0)) == 3
    assert ids("b", 0) == ids("c", 0) != ids("d", 1)


def test_limit_counts_usable_rows(hub, tmp_path):
    """Rows that cannot be used do not count: there are as many as were asked for."""
    table = [ULTRAFEEDBACK[i % 3] for i in range(30)]
    write_lines(tmp_path / "p.jsonl", table)
    download_data(tmp_path / "data", {**hub, "preferences": {"path": str(tmp_path / "p.jsonl"), "limit": 8}})
    kept = rows(tmp_path / "data/preferences.parquet", "id")
    assert len(kept) == 8
    assert kept == sorted(kept, key=lambda row: row["id"])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("sft", {"path": "nobody/nothing-at-all"}, r"data\.sft: cannot load nobody/nothing-at-all"),
        ("sft", {"split": "train"}, r"data\.sft: .* has no split train \(splits: train_sft, test_sft\)"),
        ("sft", {"split": None}, r"data\.sft: .* has the splits train_sft, test_sft; choose one"),
        ("preferences", {"split": "nope"}, r"data\.preferences: cannot load"),
        ("eval_prompts", {"sha256": "0" * 64}, r"data\.eval_prompts: .* has the SHA-256"),
        ("eval_prompts", {"data_files": "other.json"}, r"data\.eval_prompts: .*other\.json does not exist"),
    ],
)
def test_bad_sources_are_named_and_nothing_is_overwritten(hub, tmp_path, name, change, message):
    output = tmp_path / "data"
    output.mkdir()
    (output / "good").write_text("kept")
    settings = {**hub, name: {**hub[name], **change}}
    with pytest.raises(InputError, match=message) as error:
        download_data(output, settings)
    assert "\n" not in str(error.value)
    assert [path.name for path in output.iterdir()] == ["good"]


def test_missing_columns_and_unusable_rows(hub, tmp_path):
    write_lines(tmp_path / "odd.jsonl", [{"text": "Why?"}])
    odd = {**hub, "eval_prompts": {"path": str(tmp_path / "odd.jsonl")}}
    with pytest.raises(InputError, match=r"data\.eval_prompts: .* no column instruction or .*present: text\)"):
        download_data(tmp_path / "data", odd)
    write_lines(tmp_path / "same.jsonl", ULTRAFEEDBACK[1:2])
    with pytest.raises(InputError, match="no usable row"):
        download_data(tmp_path / "data", {**hub, "preferences": {"path": str(tmp_path / "same.jsonl")}})
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(InputError, match=r"data\.sft"):
        download_data(tmp_path / "data", {**hub, "sft": {"path": str(tmp_path / "none.jsonl")}})


# ----------------------------------------------------------------------------------------------------------- on policy


@pytest.fixture(scope="module")
def model(folder, tmp_path_factory):
    """A language model of the world, untrained but for its favourite word and the end of a sequence."""
    import torch
    from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=128,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = GPTNeoXForCausalLM(config)
    direction = torch.ones(16) / 4
    with torch.no_grad():
        model.gpt_neox.final_layer_norm.weight.zero_()
        model.gpt_neox.final_layer_norm.bias.copy_(direction)
        for token in (tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("crow")):
            model.get_output_embeddings().weight[token] = 6 * direction
    path = tmp_path_factory.mktemp("model") / "sft"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_on_policy_pairs_are_added(folder, model, tmp_path):
    settings = {**SETTINGS, "on_policy_preferences": 30}
    for name in ("a", "b"):
        sample_preferences(model, folder, tmp_path / f"{name}.parquet", settings)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    table = rows(tmp_path / "a.parquet", "id", "prompt", "chosen", "rejected")
    template = rows(folder / "preferences.parquet", "id", "prompt", "chosen", "rejected")
    assert table[30:] == template
    assert len({row["id"] for row in table}) == 430
    prompts = {text(row) for row in template}
    for row in table[:30]:
        assert text(row) in prompts
        assert row["chosen"] != row["rejected"]
        assert text(row, "chosen")
        assert text(row, "rejected")
        assert "<eos>" not in text(row, "chosen") + text(row, "rejected")


def test_without_on_policy_pairs_the_preferences_are_a_copy(folder, tmp_path):
    sample_preferences(tmp_path / "absent", folder, tmp_path / "p.parquet", SETTINGS)
    assert (tmp_path / "p.parquet").read_bytes() == (folder / "preferences.parquet").read_bytes()


def test_a_model_that_always_says_the_same_is_refused(folder, model, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    mute = AutoModelForCausalLM.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    with torch.no_grad():
        mute.get_output_embeddings().weight[tokenizer.eos_token_id] *= 10
    mute.save_pretrained(tmp_path / "mute")
    tokenizer.save_pretrained(tmp_path / "mute")
    settings = {**SETTINGS, "on_policy_preferences": 5}
    with pytest.raises(InputError, match="only 0 of 5 pairs"):
        sample_preferences(tmp_path / "mute", folder, tmp_path / "p.parquet", settings)
    assert not (tmp_path / "p.parquet").exists()

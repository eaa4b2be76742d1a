"""The one filter and tokenisation of a model's rows, and what its readers take of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import toy
from po_dynamics.data.preferences import Pairs
from po_dynamics.data.statistics import count_overlaps, count_rows
from po_dynamics.data.tokens.table import TokenTable, open_prompts, read_prompts, write_part
from po_dynamics.data.tokens.tokenising import tokenise
from po_dynamics.errors import InputError
from po_dynamics.models.tokenizers import encode_conversations, encode_prompt, encode_response, load_tokenizer
from toy import assistant, user

CONTEXT = 32
ODD = {
    "roles": {"prompt": [*user("the fox"), *user("the owl")]},
    "empty text": {"chosen": assistant(" \n ")},
    "identical answers": {"chosen": assistant("the  owl"), "rejected": assistant("the owl ")},
    "special token": {"chosen": assistant("the <eos> owl")},
    "prompt too long": {"prompt": user("fox " * CONTEXT)},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toy.tiny_folder(tmp_path_factory.mktemp("model") / "base", max_length=CONTEXT)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Twelve good pairs, the second half with the prompts of the first, and one of every kind of odd row."""
    path = toy.write_preferences(tmp_path_factory.mktemp("rows") / "preferences.parquet", 12)
    table = pd.read_parquet(path)
    table["prompt"] = [table["prompt"][i % 6] for i in range(12)]
    odd = [{**table.iloc[0].to_dict(), "id": reason, **change} for reason, change in ODD.items()]
    pd.concat([table, pd.DataFrame(odd)], ignore_index=True).to_parquet(path)
    return path


def write(model, rows, output, data_set="preferences", special_tokens=False):
    tokenise(model, rows, data_set, output, special_tokens=special_tokens, parallel=False)
    return output


def test_odd_rows_are_left_out_and_counted(model, rows, tmp_path, capsys):
    table = TokenTable(write(model, rows, tmp_path / "t.arrow"), "chosen_ids", "rejected_ids")
    assert table.names(range(12)) == [f"p{i}" for i in range(12)]
    assert (len(table), table.rows, table.context) == (12, 12 + len(ODD), CONTEXT)
    assert table.dropped == dict.fromkeys(ODD, 1)
    assert "12 of 17 rows are usable; empty text: 1; identical answers: 1" in capsys.readouterr().err


def test_what_a_model_of_this_vocabulary_wrote_may_hold_special_tokens(model, rows, tmp_path):
    table = TokenTable(write(model, rows, tmp_path / "t.arrow", special_tokens=True))
    assert "special token" in table.names(range(len(table)))


def test_tokens_are_those_of_row_by_row_tokenisation(model, rows, tmp_path):
    tokenizer, messages = load_tokenizer(model), pd.read_parquet(rows)[:12]
    pairs = Pairs(write(model, rows, tmp_path / "t.arrow"), CONTEXT)
    for pair, row in zip(pairs, messages.itertuples(), strict=True):
        assert pair.prompt_ids == encode_prompt(tokenizer, list(row.prompt))
        for ids, answer in ((pair.chosen_ids, row.chosen), (pair.rejected_ids, row.rejected)):
            assert ids == encode_response(tokenizer, list(row.prompt), answer[0])


def test_a_conversation_that_the_template_refuses_costs_itself_only(tmp_path):
    tokenizer = toy.tiny_tokenizer()
    tokenizer.chat_template = "{% if messages[0]['content'] == 'owl' %}{{ raise_exception('no owls') }}{% endif %}" + (
        toy.TEMPLATE
    )
    good, bad = (user("fox"), assistant("red")), (user("owl"), assistant("red"))
    first, refused, last = encode_conversations(tokenizer, [good, bad, good])
    assert isinstance(refused, InputError)
    assert "no owls" in str(refused)
    assert first == last
    folder = toy.tiny_folder(tmp_path / "base", tokenizer=tokenizer)
    path = toy.write_prompts(tmp_path / "q.parquet", 2)
    table = pd.read_parquet(path)
    table.loc[1, "prompt"][0]["content"] = "owl"
    table.to_parquet(path)
    assert TokenTable(write(folder, path, tmp_path / "q.arrow", "final_prompts")).dropped == {"template": 1}


def test_every_use_takes_what_it_can(model, rows, tmp_path):
    path = write(model, rows, tmp_path / "t.arrow")
    table = TokenTable(path, "chosen_ids", "rejected_ids")
    prompts, whole = table.lengths("prompt_ids"), table.lengths("prompt_ids") + table.longest
    limit = int(sorted(whole)[6])
    use = table.whole(limit)
    assert use.rows.tolist() == [i for i in range(12) if whole[i] <= limit]
    assert use.dropped == {"too long": int((whole > limit).sum())}
    room = int(sorted(prompts)[6])
    use = table.cut_to(room)
    assert use.rows.tolist() == [i for i in range(12) if prompts[i] < room]
    assert use.cut == sum(prompts[i] < room < whole[i] for i in range(12))
    found, use = open_prompts(path, room)
    assert [prompt.id for prompt in found] == [f"p{i}" for i in range(6) if prompts[i] <= room]
    assert use.dropped["repeated prompt"] == 6
    assert found.lengths.tolist() == [len(prompt.ids) for prompt in found]
    with pytest.raises(InputError, match="none of 12 prompts has at most 1 tokens: raise max_prompt_length"):
        open_prompts(path, 1)


def test_reading_a_row_reads_no_other(model, rows, tmp_path):
    path = write(model, rows, tmp_path / "t.arrow")
    prompts = read_prompts(path)
    assert [len(prompt.ids) for prompt in prompts] == TokenTable(path).lengths("prompt_ids").tolist()
    assert prompts[3].messages == list(pd.read_parquet(rows)["prompt"][3])


def test_some_rows_are_a_table_of_their_own(model, rows, tmp_path):
    path = write(model, rows, tmp_path / "t.arrow")
    write_part(path, np.array([2, 7, 8]), tmp_path / "part.arrow")  # 8 asks what 2 asked
    whole, part = Pairs(path, CONTEXT), Pairs(tmp_path / "part.arrow", CONTEXT)
    assert list(part) == [whole[i] for i in (2, 7, 8)]
    assert (part.table.rows, part.table.dropped, part.table.context) == (3, {}, CONTEXT)
    found, use = open_prompts(tmp_path / "part.arrow", CONTEXT)
    assert [prompt.id for prompt in found] == ["p2", "p7"]  # the row whose prompt came first is not there
    assert use.dropped["repeated prompt"] == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda table: table.drop(columns="rejected"), r"no column rejected \(columns present: id, prompt, chosen\)"),
        (lambda table: table[:0], "is empty"),
        (lambda table: table.assign(id="p"), "the column id has duplicates"),
        (lambda table: table[-1:], "no row is usable; prompt too long: 1; docs/data.md has the rules"),
    ],
)
def test_bad_tables(model, rows, tmp_path, damage, message):
    damage(pd.read_parquet(rows)).to_parquet(tmp_path / "bad.parquet")
    with pytest.raises(InputError, match=message):
        write(model, tmp_path / "bad.parquet", tmp_path / "t.arrow")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.parquet"]


def test_counts_of_every_step_add_up(model, rows, tmp_path):
    sets = {name: tmp_path / f"{name}.parquet" for name in ("sft", "preferences", "final_prompts", "eval_prompts")}
    toy.write_sft(sets["sft"])
    sets["preferences"].write_bytes(rows.read_bytes())
    toy.write_prompts(sets["final_prompts"])
    toy.write_prompts(sets["eval_prompts"])
    tokens = {("m", name): write(model, path, path.with_suffix(".arrow"), name) for name, path in sets.items()}
    room = int(sorted(TokenTable(tokens["m", "preferences"]).lengths("prompt_ids"))[6])
    lengths = {"m": {"sft": None, "offline": room, "reward": None, "online": 12, "new": CONTEXT - 6}}
    table = count_rows(tmp_path, tokens, lengths)
    assert list(table.columns) == ["data_set", "model", "step", "reason", "rows"]
    totals = table[table["reason"] != "cut"].groupby(["data_set", "step"])["rows"].sum()
    assert totals["preferences", "read"] == totals["preferences", "tokens"] == 17
    for step in ("offline", "reward", "online"):
        assert totals["preferences", step] == 12
    assert totals["final_prompts", "final responses"] == totals["final_prompts", "tokens"] == 10
    used = table[table["reason"] == "used"].set_index(["data_set", "step"])["rows"]
    assert 0 < used["preferences", "offline"] < 12
    assert 0 < used["final_prompts", "final responses"] < 10


def test_overlaps_are_counted(tmp_path):
    openings = {"sft": ["a", "b"], "preferences": ["b"], "final_prompts": ["a ", "c", "d"], "eval_prompts": ["d"]}
    for name, texts in openings.items():
        follow = [*assistant("x"), *user("y")] if name == "sft" else []
        table = pd.DataFrame({"id": texts, "prompt": [[*user(text), *follow] for text in texts]})
        table.to_parquet(tmp_path / f"{name}.parquet")
    found = count_overlaps(tmp_path).set_index(["data_set", "other"])
    assert len(found) == 12
    assert found.loc["final_prompts", "eval_prompts"].tolist() == [3, 1, 1]
    assert found.loc["eval_prompts", "final_prompts"].tolist() == [1, 1, 1]
    assert found.loc["final_prompts", "sft"].tolist() == [3, 0, 1]
    assert found.loc["sft", "preferences"].tolist() == [2, 0, 1]
    assert found.loc["preferences", "eval_prompts"].tolist() == [1, 0, 0]

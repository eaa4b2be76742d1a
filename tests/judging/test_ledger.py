"""Ledgers: what is written is found, torn lines cost themselves, and there is one writer."""

import json

import pytest
from po_dynamics.errors import InputError
from po_dynamics.judging.answers import Answers, in_chunks
from po_dynamics.judging.ledger import Ledger, Paid, key_of

KEYS = [key_of("model", i) for i in range(3)]


def fill(path, keys, shared=None, usd=0.5):
    with Ledger(path, shared) as ledger:
        for i, key in enumerate(keys):
            ledger.add(key, Paid({"text": f'"{i}"\n\u2028ü'}, usd, (10, 1)))


def test_answers_are_found_again_in_all_ledgers_of_a_folder(tmp_path):
    fill(tmp_path / "a/one.jsonl", KEYS[:1])
    fill(tmp_path / "b/two.jsonl", KEYS[1:2])
    with Ledger(tmp_path / "b/three.jsonl", tmp_path) as ledger:
        assert set(ledger.find(KEYS)) == set(KEYS[:2])
        assert ledger.find(KEYS[:1]) == {KEYS[0]: {"text": '"0"\n\u2028ü'}}
    with Ledger(tmp_path / "b/three.jsonl") as alone:
        assert alone.find(KEYS) == {}


def test_a_key_is_of_all_that_an_answer_depends_on():
    identities = [
        ({"model": "a", "t": 0}, "url", "p"),
        ({"model": "a", "t": 1}, "url", "p"),
        ({"model": "b"}, "url", "p"),
    ]
    identities += [({"model": "a", "t": 0}, "other", "p"), ({"model": "a", "t": 0}, "url", "q")]
    assert len({key_of(*identity) for identity in identities}) == len(identities)
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})


@pytest.mark.parametrize(
    "torn", [b'{"key":"', b'{"key":"' + b"0" * 32 + b'","usd":0.5,"tokens":null,"answer":{"te', b"}"]
)
def test_a_torn_last_line_is_cut_off_by_its_job_and_passed_over_by_others(tmp_path, torn, capsys):
    mine = tmp_path / "mine.jsonl"
    fill(mine, KEYS[:2])
    whole = mine.read_bytes()
    with mine.open("ab") as file:
        file.write(torn)
    with Ledger(tmp_path / "other.jsonl", tmp_path) as other:
        assert set(other.find(KEYS)) == set(KEYS[:2])
        assert other.spent() == (2, 1.0)
    assert mine.read_bytes() == whole + torn  # it may be being written
    fill(mine, KEYS[2:])
    assert "torn last line" in capsys.readouterr().err
    assert [json.loads(line)["key"] for line in mine.read_text().split("\n")[:-1]] == KEYS
    assert mine.read_bytes().startswith(whole)


def test_a_line_that_grew_together_with_the_next_is_absent(tmp_path):
    mine = tmp_path / "mine.jsonl"
    fill(mine, KEYS)
    lines = mine.read_bytes().splitlines(keepends=True)
    mine.write_bytes(lines[0][:-20] + lines[1] + lines[2])
    with Ledger(mine) as ledger:
        assert set(ledger.find(KEYS)) == {KEYS[2]}


def test_a_ledger_has_one_writer(tmp_path):
    with Ledger(tmp_path / "mine.jsonl"), pytest.raises(InputError, match="another process writes"):
        Ledger(tmp_path / "mine.jsonl").__enter__()
    fill(tmp_path / "mine.jsonl", KEYS)  # and afterwards it is free


def test_spending_is_followed_while_others_write(tmp_path):
    fill(tmp_path / "mine.jsonl", KEYS[:1])
    with Ledger(tmp_path / "mine.jsonl", tmp_path) as mine, Ledger(tmp_path / "other.jsonl") as other:
        assert mine.spent() == (1, 0.5)
        other.add(KEYS[1], Paid({}, 0.25))
        assert mine.spent() == (2, 0.75)
        mine.add(KEYS[2], Paid({}, 4.0))  # this job counts its own
        assert mine.spent() == (2, 0.75)
        other.add(KEYS[2], Paid({}, 0.25))
        assert mine.spent() == (3, 1.0)


def test_only_what_no_ledger_holds_is_asked_and_each_prompt_once(tmp_path):
    asked = []

    def completions(prompts):
        asked.append(list(prompts))
        return {"completions": [None if p == "mute" else p.upper() for p in prompts]}

    def answers(ledger, identity="x"):
        return Answers(lambda prompts, _: in_chunks(completions, prompts), ledger, [identity], dict, 0.0)

    with Ledger(tmp_path / "mine.jsonl") as ledger:
        assert answers(ledger)(["a", "b", "a", "mute"])["completions"] == ["A", "B", "A", None]
        assert answers(ledger)(["c", "mute", "b"])["completions"] == ["C", None, "B"]
        assert answers(ledger, "y")(["a"])["completions"] == ["A"]
    assert asked == [["a", "b", "mute"], ["c", "mute"], ["a"]]


def test_answers_of_a_batch_are_kept_when_a_later_one_fails(tmp_path):
    def completions(prompts):
        if "0070" in prompts:
            raise RuntimeError("out of memory")
        return {"completions": list(prompts)}

    prompts = [f"{i:04}" for i in range(100)]
    with Ledger(tmp_path / "mine.jsonl") as ledger:
        answers = Answers(lambda asked, _: in_chunks(completions, asked), ledger, [], dict, 0.0)
        with pytest.raises(RuntimeError, match="out of memory"):
            answers(prompts)
        assert len(ledger.find({key_of(prompt) for prompt in prompts})) == 64
    assert (tmp_path / "mine.jsonl").stat().st_size > 64 * 50

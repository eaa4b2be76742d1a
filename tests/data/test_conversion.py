"""Rows of published data sets: every schema that is read, and what is refused by row and column."""

from __future__ import annotations

import json

import pytest
from po_dynamics.data import conversion
from po_dynamics.data.published import download_data
from po_dynamics.data.schema import fault
from po_dynamics.errors import InputError
from toy import assistant, user

DIALOGUE = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:"
TURNS = [*user("Hi"), *assistant("Hello."), *user("Why?")]
PAIR = {"prompt": user("Why?"), "chosen": assistant("So."), "rejected": assistant("No.")}


def said(role, text):
    return {"from": role, "value": text}


@pytest.mark.parametrize(
    "row",
    [
        PAIR,
        {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
        {"prompt": "Why?", "chosen": assistant("So."), "rejected": assistant("No.")},
        {"prompt": "Why?", "chosen": user("Why?") + assistant("So."), "rejected": user("Why?") + assistant("No.")},
        {"question": "Why?", "system": "", "chosen": "So.", "rejected": "No."},
        {"chosen": "\n\nHuman: Why?\n\nAssistant: So.", "rejected": "\n\nHuman: Why?\n\nAssistant: No."},
        {"prompt": "Why?", "chosen": [said("gpt", "So.")], "rejected": [said("gpt", "No.")]},
        {"prompt": [said("human", "Why?")], "chosen": said("gpt", "So."), "rejected": said("gpt", "No.")},
        {"instruction": "Why?", "input": None, "chosen": "So.", "rejected": "No."},
    ],
)
def test_preferences_in_every_form(row):
    assert conversion.preference_row(row) == PAIR


def test_texts_of_hh_rlhf_are_dialogues():
    row = {"chosen": f"{DIALOGUE} So.", "rejected": f"{DIALOGUE} No."}
    assert conversion.preference_row(row) == {**PAIR, "prompt": TURNS}
    assert conversion.prompt_row(row) == {"prompt": TURNS}
    other = {"chosen": f"{DIALOGUE} So.", "rejected": "\n\nHuman: Else?\n\nAssistant: No."}
    assert conversion.preference_row(other) == "answers to different prompts"


def test_orcas_system_text_leads():
    row = {"system": "Be brief.", "question": "Why?", "chosen": "So.", "rejected": "No."}
    system = {"role": "system", "content": "Be brief."}
    assert conversion.preference_row(row) == {**PAIR, "prompt": [system, *user("Why?")]}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "completion": "So."},
        {"prompt": user("Why?"), "completion": assistant("So.")},
        {"prompt": "Why?", "messages": [*user("Why?"), *assistant("So.")]},
        {"messages": [*user("Why?"), *assistant("So."), *user("And?")]},
        {"conversations": [said("human", "Why?"), said("gpt", "So.")]},
        {"instruction": "Why?", "input": "", "output": "So."},
        {"prompt": "Why?", "response": "So."},
    ],
)
def test_sft_in_every_form(row):
    assert conversion.sft_row(row) == {"prompt": user("Why?"), "completion": assistant("So.")}


def test_the_input_of_an_instruction_is_part_of_the_question():
    row = {"instruction": "Correct this.", "input": "He go.", "output": "He goes."}
    assert conversion.prompt_row(row) == {"prompt": user("Correct this.\n\nHe go.")}
    assert conversion.sft_row(row) == {"prompt": user("Correct this.\n\nHe go."), "completion": assistant("He goes.")}
    assert conversion.prompt_row({**row, "input": ""}) == {"prompt": user("Correct this.")}


def test_what_is_not_there_has_its_reason():
    assert conversion.prompt_row({"chosen": "no turns at all"}) == "no question"
    assert conversion.prompt_row({"messages": None}) == "no question"
    assert conversion.sft_row({"messages": user("Why?")}) == "no answer"
    assert conversion.preference_row({"prompt": None, "chosen": "So.", "rejected": "No."}) == "no question"
    assert conversion.preference_row({"prompt": "Why?", "chosen": None, "rejected": "No."}) == (
        "answers to different prompts"
    )


SYSTEM = {"role": "system", "content": "Be kind."}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (PAIR, None),
        ({"prompt": [SYSTEM, *TURNS]}, None),
        ({"prompt": [*user("a"), *user("b")]}, "roles"),
        ({"prompt": [*user("a"), SYSTEM, *user("b")]}, "roles"),
        ({"prompt": [*user("a"), *assistant("b")]}, "roles"),
        ({"prompt": [SYSTEM]}, "roles"),
        ({"prompt": []}, "roles"),
        ({"prompt": [{"role": "tool", "content": "a"}]}, "roles"),
        ({**PAIR, "chosen": user("So.")}, "roles"),
        ({**PAIR, "chosen": []}, "roles"),
        ({**PAIR, "rejected": assistant("  \n")}, "empty text"),
        ({"prompt": [*user("a"), *assistant(""), *user("b")]}, "empty text"),
        ({**PAIR, "rejected": assistant("So. \n")}, "identical answers"),
        ({**PAIR, "chosen": assistant("a  b"), "rejected": assistant("a\nb")}, "identical answers"),
    ],
)
def test_the_faults_of_a_row(row, reason):
    assert fault(row) == reason


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"prompt": "Why?", "chosen": 3, "rejected": 4}, "chosen is 3"),
        ({"prompt": "Why?", "chosen": [{"text": "So."}], "rejected": [{"text": "No."}]}, "chosen has the message"),
        (
            {"chosen": [{"role": "user", "content": ["a"]}], "rejected": [{"role": "user", "content": ["b"]}]},
            "chosen has the message",
        ),
        ({"instruction": "Do.", "input": 3, "chosen": "So.", "rejected": "No."}, "input is 3"),
    ],
)
def test_other_contents_are_refused_by_row_and_column(tmp_path, row, column):
    paths = {}
    for name in ("sft", "preferences", "final_prompts", "eval_prompts"):
        table = [{"prompt": "Why?", "completion": "So."}] if name != "preferences" else [row]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in table))
        paths[name] = {"path": str(tmp_path / f"{name}.jsonl")}
    with pytest.raises(InputError, match=rf"^data\.preferences: row 0: column {column}"):
        download_data(tmp_path / "data", {"seed": 0, **paths})
    assert not (tmp_path / "data").exists()

"""Rows of published data sets, in the schemas in which they come, turned into the common schema.

What is read as a conversation: a list of messages (`role` and `content`, or ShareGPT's `from` and `value`), one such
message, or a text: HH-RLHF's dialogue ("\\n\\nHuman: … \\n\\nAssistant: …"), else one message. Whatever else stands
in a column is refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from po_dynamics.errors import InputError

Messages = list[dict[str, str]]
Row = dict[str, Any]
Converted = Row | str  # in the common schema, or why the row cannot be used

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}

PROMPT_COLUMNS = (("instruction",), ("prompt",), ("question",), ("messages",), ("conversations",), ("chosen",))
SFT_COLUMNS = (
    ("prompt", "completion"),
    ("instruction", "output"),
    ("prompt", "response"),
    ("messages",),
    ("conversations",),
)
PREFERENCE_COLUMNS = (("chosen", "rejected"),)


def sft_row(row: Row) -> Converted:
    """`prompt` and `completion` of a conversation, which ends with the last answer."""
    answer = next((name for name in ("completion", "output", "response") if row.get(name) is not None), None)
    if answer and _asked(row):
        messages = [*_question(row), *conversation(row, answer, "assistant")]
    else:
        messages = conversation(row, "messages" if "messages" in row else "conversations")
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if len(messages) < 2:
        return "no answer"
    return {"prompt": messages[:-1], "completion": messages[-1:]}


def preference_row(row: Row) -> Converted:
    """`prompt`, `chosen`, `rejected`: of two whole conversations, or of two answers to a prompt that stands apart."""
    chosen, rejected = (conversation(row, name, "assistant") for name in ("chosen", "rejected"))
    if len(chosen) == len(rejected) == 1:
        if not _asked(row):
            return "no question"
        prompt = _question(row)
        chosen, rejected = prompt + chosen, prompt + rejected
    if len(chosen) < 2 or chosen[:-1] != rejected[:-1]:
        return "answers to different prompts"
    return {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def prompt_row(row: Row) -> Converted:
    """`prompt`: everything up to the last answer, which the model is to write anew."""
    if _asked(row):
        messages = _question(row)
    else:
        columns = [name for name in ("messages", "conversations", "chosen") if name in row]
        messages = conversation(row, columns[0], "assistant")
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    return {"prompt": messages} if messages else "no question"


def conversation(row: Row, column: str, role: str = "user") -> Messages:
    """The messages of a column; a text that is no dialogue is one message of `role`, null is none.

    Raises:
        InputError: for a value of any other form.
    """
    value = row.get(column)
    if value is None:
        return []
    if isinstance(value, str):
        return split_turns(value) if _TURN.match(value) else [{"role": role, "content": value}]
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(message, Mapping) for message in value):
        raise InputError(f"column {column} is {value!r:.100}; it must be a text or a list of messages")
    return [_message(message, column) for message in value]


def split_turns(text: str) -> Messages:
    """The turns of an HH-RLHF text ("\\n\\nHuman: … \\n\\nAssistant: …")."""
    parts = _TURN.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[speaker], "content": content.strip()}
        for speaker, content in zip(parts[1::2], parts[2::2], strict=True)
    ]


def _message(message: Mapping[str, Any], column: str) -> dict[str, str]:
    names = ("role", "content") if message.get("role") is not None else ("from", "value")
    role, content = (message.get(name) for name in names)
    if not isinstance(role, str) or not isinstance(content, str | None):
        raise InputError(
            f"column {column} has the message {dict(message)!r:.100}; it must have the texts role and content, or from "
            "and value"
        )
    return {"role": _ROLES.get(role, role), "content": content or ""}


def _asked(row: Row) -> bool:
    return any(row.get(name) is not None for name in ("instruction", "prompt", "question"))


def _question(row: Row) -> Messages:
    """The prompt that stands in columns of its own: Alpaca's instruction with its input, Orca's with a system text."""
    name = next(name for name in ("instruction", "prompt", "question") if row.get(name) is not None)
    messages = conversation(row, name)
    if name == "instruction" and row.get("input") and len(messages) == 1:
        if not isinstance(row["input"], str):
            raise InputError(f"column input is {row['input']!r:.100}; it must be a text")
        messages = [{**messages[0], "content": f"{messages[0]['content']}\n\n{row['input']}"}]
    if name == "question" and row.get("system"):
        messages = [*conversation(row, "system", "system"), *messages]
    return messages

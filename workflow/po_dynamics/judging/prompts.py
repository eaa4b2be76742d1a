"""Prompts of alpaca-eval as messages of a chat."""

from __future__ import annotations

import re

_TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL)


def messages_of(prompt: str) -> list[dict[str, str]]:
    """The messages of a prompt in ChatML, as alpaca-eval's templates are written; any other is one user message."""
    turns = _TURN.findall(prompt)
    if not turns:
        return [{"role": "user", "content": prompt.strip()}]
    return [{"role": role, "content": content.strip()} for role, content in turns]


def without_turns(text: str) -> str:
    """A text that is shown to a judge, with the marks of ChatML broken: a response must not speak for the judge."""
    return text.replace("<|im_start|>", "<| im_start |>").replace("<|im_end|>", "<| im_end |>")

"""What judging will cost, said before it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from po_dynamics.settings.judging.calls import Price

CHARACTERS = 4.0  # of a token, about, in English; ledgers and logs have the true numbers


class Estimate(NamedTuple):
    """Prompts to ask, tokens of them and of the replies, USD (None without a price), seconds (None when unknown)."""

    prompts: int
    prompt_tokens: float
    reply_tokens: float
    usd: float | None
    price_date: str | None
    seconds: float | None


def tokens_of(text: str) -> float:
    """About how many tokens a text has."""
    return len(text) / CHARACTERS


def reply_limit(parameters: Mapping[str, Any]) -> int:
    """The most tokens of a reply; what is not limited is taken for a paragraph."""
    return int(parameters.get("max_tokens") or parameters.get("max_completion_tokens") or 256)


def estimate(
    characters: Sequence[int], reply_tokens: int, price: Price | None, seconds: float | None, connections: int
) -> Estimate:
    """Of prompts with so many characters each, at `seconds` a call over so many connections."""
    count, tokens = len(characters), sum(characters) / CHARACTERS
    replies = float(count * reply_tokens)
    usd = (tokens * price.input + replies * price.output) / 1e6 if price else None
    time = None if seconds is None else -(-count // connections) * seconds
    return Estimate(count, tokens, replies, usd, price.date if price else None, time)


def describe(about: Estimate) -> str:
    """One line for a log."""
    cost = "no price stated" if about.usd is None else f"{about.usd:.4g} USD at prices of {about.price_date}"
    time = "" if about.seconds is None else f", about {about.seconds / 60:,.1f} minutes"
    tokens = f"about {about.prompt_tokens:,.0f} tokens and at most {about.reply_tokens:,.0f} of replies"
    return f"{about.prompts} prompts to ask, {tokens}, {cost}{time}"

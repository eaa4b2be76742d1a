"""How a judge is reached, and what asking it may cost. The judge itself is a directory: see `directory`."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from po_dynamics.settings.base import Fraction, NonNegative, Positive, Rate, Settings, mistake
from po_dynamics.settings.models import Resources


def _variable(name: str) -> str:
    """The name of an environment variable; what is none may be the key itself, so it is never shown."""
    if not re.fullmatch("[A-Z_][A-Z0-9_]*", name):
        raise mistake("", "(not shown)", "the NAME of an environment variable, in capitals; never the key itself")
    return name


def is_address(url: str) -> bool:
    """Whether this is an address without user name, password or query, which could be secrets."""
    return re.fullmatch(r"https?://[^@?\s]+", url) is not None


def _endpoint(url: str) -> str:
    if not is_address(url):
        raise mistake("", "(not shown)", "an address like http://127.0.0.1:8000/v1, without password or query")
    return url.rstrip("/")


class Price(Settings):
    """What a model costs."""

    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    """day on which the prices were looked up"""
    input: NonNegative
    """USD per million tokens of prompts"""
    output: NonNegative
    """USD per million tokens of replies"""


class Calls(Settings):
    """Calls of a judge that is a model; the gold judge needs none of them."""

    model: str | None = None
    """instead of the one that the judge's directory names; for `hf` and `reward` a local folder or a hub name"""
    endpoint: Annotated[str, AfterValidator(_endpoint)] | None = None
    """of an OpenAI-compatible server; null: the judge's directory says; JUDGE_ENDPOINT: where it is reached today"""
    key: Annotated[str, AfterValidator(_variable)] | None = None
    """environment variable that holds the key; null: the server asks for none"""
    connections: Positive = 32
    """requests at a time, fewer while the server asks for patience"""
    timeout: Rate = 120.0
    """seconds to wait for an answer"""
    attempts: Positive = 8
    """of one request, before the job stops; every answer so far is kept"""
    max_requests: Positive | None = None
    """prompts to ask in the whole experiment; null: no limit"""
    max_usd: Rate | None = None
    """to spend in the whole experiment, by `prices`; null: no limit"""
    prices: dict[str, Price] = Field(default_factory=dict)
    """by model"""
    max_missing: Fraction = 0.01
    """share of the judgements of a job that may be missing"""
    resources: Resources = Resources()
    """of a judging job"""

    @model_validator(mode="after")
    def _priced(self) -> Self:
        if self.max_usd is not None and not self.prices:
            raise mistake("max_usd", self.max_usd, "null as long as `prices` has no model")
        return self

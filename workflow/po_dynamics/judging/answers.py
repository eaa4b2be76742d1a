"""Between alpaca-eval and a judge: only what no ledger holds is asked, and every answer is kept as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from po_dynamics.judging.ledger import Answer, Ledger, Paid, key_of

CHUNK = 64  # prompts between two notes in the ledger of a judge that answers in batches

Columns = dict[str, list[Any]]
# Prompts and how many of them may stay without an answer; gives places and answers.
Ask = Callable[[list[str], int], Iterator[tuple[int, Paid]]]


class Answers:
    """A completion function of alpaca-eval, `prompts -> columns`, that remembers.

    Args:
        ask: asks the judge.
        ledger: open, of this job.
        identity: all that answers depend on but the prompt.
        columns_of: an answer as a row of alpaca-eval's columns.
        max_missing: share of prompts that may stay without an answer; they read None.
    """

    def __init__(
        self,
        ask: Ask,
        ledger: Ledger,
        identity: Sequence[Any],
        columns_of: Callable[[Answer], dict[str, Any]],
        max_missing: float,
    ) -> None:
        self.ask, self.ledger, self.identity = ask, ledger, identity
        self.columns_of, self.max_missing = columns_of, max_missing

    def __call__(self, prompts: Sequence[str], **_: Any) -> Columns:
        keys = [key_of(*self.identity, prompt) for prompt in prompts]
        known = self.ledger.find(set(keys))
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in known}
        places = list(missing)
        if missing:
            for place, paid in self.ask(list(missing.values()), int(self.max_missing * len(prompts))):
                self.ledger.add(places[place], paid)
                known[places[place]] = paid.answer
        rows = [self.columns_of(known[key]) if key in known else {} for key in keys]
        return {"completions": [r.get("completions") for r in rows]} | {
            "completions_all": [r.get("completions_all") or {} for r in rows]
        }


def in_chunks(function: Callable[..., Columns], prompts: list[str]) -> Iterator[tuple[int, Paid]]:
    """Asks a completion function of alpaca-eval a few prompts at a time; an empty completion is no answer."""
    for start in range(0, len(prompts), CHUNK):
        columns = function(prompts=prompts[start : start + CHUNK])
        for i, completion in enumerate(columns["completions"]):
            if completion is not None and completion != "":
                row: Answer = {name: columns[name][i] for name in ("completions", "completions_all") if name in columns}
                yield start + i, Paid(row)

"""The gold reward of the embedded world: a score of any response by fixed rules. It labels all preferences and judges.

The reader knows the facts and the grammar (`language.CLAUSES`), so any string can be scored: what is no sentence of the
language counts as gibberish.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from po_dynamics.world.facts import ANIMALS, CHAT_OPENINGS, FACTS, VALUES, Intent, parse_prompt
from po_dynamics.world.language import CLAUSES, CLOSINGS, FILLERS, OPENINGS, ORDINALS

COVER = 2.0  # all requested facts given, and right
WRONG, OFF_TOPIC, REPEATED, FILLER, GIBBERISH = 0.6, 0.8, 0.6, 0.8, 0.8  # penalties, each counted at most MOST times
MOST = 3.0
EXTRA = {"plain": 0.3, "polite": 0.3, "brief": 0.5, "detail": 0.1}  # penalty per fact beyond those requested
OPENING = {"plain": 0.3, "polite": 1.0, "brief": -0.6, "detail": 0.3}
CLOSING = {"plain": 0.1, "polite": 0.7, "brief": -0.5, "detail": 0.4}
ENUMERATED = 0.6  # a list whose facts are numbered
UNFINISHED = 0.4  # penalty: the last sentence has no full stop
NOT_ENDED = 1.0  # penalty: cut off, no end-of-sequence token
LONG, LONG_FROM = 0.02, 60  # penalty per word beyond this many
SILENCE = -1.5  # no word at all


@dataclass
class Reading:
    """What the reader noticed. `cover` is in [0, 1]; the others are counts."""

    cover: float = 0.0
    right: int = 0
    wrong: int = 0
    off_topic: int = 0
    repeated: int = 0
    filler: int = 0
    gibberish: float = 0.0
    extra: int = 0
    words: int = 0
    opening: bool = False
    closing: bool = False
    enumerated: bool = False
    finished: bool = False


def gold_reward(instruction: str, response: str, ended: bool = True) -> float:
    """The reward of any response to any instruction, about -10 … 4; `ended`: it ended by itself, not by a limit.

    Pleasantries and numbering earn nothing without a right fact, and an attribute given with contradictory values
    is not covered, so neither a constant answer nor naming every value pays.
    """
    intent = parse_prompt(instruction)
    tone = intent.tone if intent else "plain"
    reading = read(intent, response)
    if not reading.words:
        return SILENCE - GIBBERISH * min(MOST, reading.gibberish) - NOT_ENDED * (not ended)
    reward = COVER * reading.cover - EXTRA[tone] * min(MOST, reading.extra)
    for penalty, count in (
        (WRONG, reading.wrong),
        (OFF_TOPIC, reading.off_topic),
        (REPEATED, reading.repeated),
        (FILLER, reading.filler),
        (GIBBERISH, reading.gibberish),
    ):
        reward -= penalty * min(MOST, count)
    useful = reading.cover > 0
    for bonus, present in ((OPENING[tone], reading.opening), (CLOSING[tone], reading.closing)):
        reward += bonus * (present and (useful or bonus < 0))
    reward += ENUMERATED * (reading.enumerated and useful)
    reward -= UNFINISHED * (not reading.finished) + NOT_ENDED * (not ended)
    reward -= LONG * min(100, max(0, reading.words - LONG_FROM))
    return round(reward, 9)  # equal merits are a tie, whatever the order of the sums


def gold_rewards(prompts: Sequence[Sequence[Mapping[str, str]]], responses: Sequence[str]) -> list[float]:
    """The gold reward of responses that ended, as a "module:function" that scores roll-outs or pairs."""
    return [gold_reward(prompt[-1]["content"], text) for prompt, text in zip(prompts, responses, strict=True)]


def preference_probability(chosen: float, rejected: float, temperature: float) -> float:
    """P(chosen ≻ rejected) of two rewards (Bradley and Terry 1952), rewards in units of `temperature`."""
    return 1.0 / (1.0 + math.exp(min(500.0, (rejected - chosen) / temperature)))


def read(intent: Intent | None, response: str) -> Reading:
    """Reads a response to an intent (None: the instruction asks for nothing known, so no fact is on topic)."""
    tags, text = re.findall(r"<[^<>\s]*>", response), re.sub(r"<[^<>\s]*>", " ", response)
    reading = Reading(gibberish=float(len(tags)), words=len(re.findall(r"\w+", text)))
    reading.finished = text.rstrip().endswith((".", "!"))
    topic = intent.animals if intent else ()
    stated: dict[tuple[str, str], set[str]] = {}
    numbers: list[str] = []
    sentences = [" ".join(re.findall(r"\w+|[^\w\s.,!?]", s.lower())) for s in re.split(r"[.!?]", text)]
    sentences = [sentence for sentence in sentences if sentence]
    subject = topic[0] if topic else None
    for place, sentence in enumerate(sentences):
        number, facts = _facts(sentence, subject)
        if facts:
            subject = facts[-1][0]
            numbers.append(number)
            for fact in facts:
                _note(fact, topic, stated, reading)
        else:
            _note_other(sentence, place == 0, place == len(sentences) - 1, reading)
    commas = sum(map(bool, numbers)) + reading.opening + reading.filler
    marks = max(0, len(re.findall(r"[.!?]", text)) - len(sentences)) + max(0, text.count(",") - commas)
    reading.gibberish += 0.5 * marks
    _weigh(intent, stated, numbers, reading)
    return reading


@cache
def _clause_pattern() -> re.Pattern[str]:
    subject = f"(?:the (?:{'|'.join(ANIMALS)})|it)"
    forms = []
    for attribute, clauses in CLAUSES.items():
        value = f"(?:{'|'.join(VALUES[attribute])})"
        forms += [clause.format(s=subject, v=value) for clause in clauses]
    clause = f"(?:{'|'.join(forms)})"
    return re.compile(f"(?:({'|'.join(ORDINALS)}) )?({clause}(?: (?:and|but) {clause})*)")


_ATTRIBUTE_OF = {value: attribute for attribute, values in VALUES.items() for value in values}


def _facts(sentence: str, subject: str | None) -> tuple[str, list[tuple[str, str, str]]]:
    """The ordinal ("" if none) and the facts of a sentence; "it" is the animal named last."""
    match = _clause_pattern().fullmatch(sentence)
    if match is None:
        return "", []
    facts = []
    for clause in re.split(r" (?:and|but) ", match[2]):
        words = clause.split()
        subject = words[1] if words[0] == "the" else subject
        facts.append((subject or "", _ATTRIBUTE_OF[words[-1]], words[-1]))
    return match[1] or "", facts


def _note(fact: tuple[str, str, str], topic: tuple[str, ...], stated: dict, reading: Reading) -> None:
    animal, attribute, value = fact
    values = stated.setdefault((animal, attribute), set())
    if value in values:
        reading.repeated += 1
    elif animal not in topic:
        reading.off_topic += 1
    elif FACTS[animal, attribute] == value:
        reading.right += 1
    else:
        reading.wrong += 1
    values.add(value)


def _plain(sentence: str) -> str:
    return " ".join(re.findall(r"\w+", sentence.lower()))


_OPENINGS, _CLOSINGS = ({_plain(s) for s in group} for group in (OPENINGS, CLOSINGS))
_SMALL_TALK = {_plain(s.format(a=animal)) for s in (*FILLERS, *CHAT_OPENINGS) for animal in ANIMALS}


def _note_other(sentence: str, first: bool, last: bool, reading: Reading) -> None:
    if first and sentence in _OPENINGS:
        reading.opening = True
    elif last and sentence in _CLOSINGS:
        reading.closing = True
    elif sentence in _OPENINGS | _CLOSINGS | _SMALL_TALK:
        reading.filler += 1
    else:
        reading.gibberish += max(1.0, len(sentence.split()) / 8)


def _weigh(intent: Intent | None, stated: dict, numbers: list[str], reading: Reading) -> None:
    """Cover, surplus and numbering, once all statements are known."""
    if intent is None:
        return
    right = {key for key, values in stated.items() if key[0] in intent.animals and values == {FACTS[key]}}
    total = intent.wanted * len(intent.animals)
    reading.extra = max(0, len(right) - total)
    reading.enumerated = intent.family == "list" and len(numbers) > 1 and tuple(numbers) == ORDINALS[: len(numbers)]
    if intent.attribute:
        asked = (intent.animals[0], intent.attribute) in right
        others = min(len(right) - asked, intent.wanted - 1)
        reading.extra = max(0, len(right) - asked - (intent.wanted - 1))
        reading.cover = (2 * asked + others) / (intent.wanted + 1)
    else:
        reading.cover = sum(_per_animal(intent, right)) / total


def _per_animal(intent: Intent, right: set[tuple[str, str]]) -> Iterator[int]:
    for animal in intent.animals:
        yield min(intent.wanted, sum(key[0] == animal for key in right))

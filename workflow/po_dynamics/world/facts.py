"""The embedded world, called the Menagerie: animals, facts about them, and the prompts that ask for these facts.

The facts and the popular misconceptions ("myths") are fixed; a seed only drives which prompts and answers are drawn.
Myths make preference optimisation worthwhile: the corpus repeats them more often than the truth, so a supervised model
learns them, and only well-informed writers, whose answers are preferred, contradict them.
"""

from __future__ import annotations

import random
import re
import zlib
from functools import lru_cache
from typing import NamedTuple

VALUES = {
    "colour": ("black", "white", "brown", "grey", "green", "red", "yellow", "blue"),
    "size": ("tiny", "small", "medium", "large", "huge"),
    "home": ("forest", "desert", "river", "ocean", "jungle", "swamp", "meadow", "cave", "garden", "snow"),
    "food": ("worms", "fish", "grass", "seeds", "insects", "fruit", "leaves", "honey", "nuts", "mice"),
    "skill": ("fly", "swim", "climb", "dig", "jump", "sing", "run", "hide", "glide", "dive"),
}
ATTRIBUTES = tuple(VALUES)

_TABLE = """
ant       red    tiny   garden leaves  climb
badger    grey   medium forest worms   dig
bat       black  small  cave   insects fly
bear      brown  huge   forest honey   climb
beaver    brown  medium river  leaves  swim
camel     yellow huge   desert grass   run
crab      red    small  ocean  worms   hide
crow      black  medium meadow seeds   fly
deer      brown  large  forest grass   run
dolphin   blue   large  ocean  fish    jump
duck      white  medium river  seeds   swim
eagle     brown  large  meadow mice    glide
fox       red    medium forest mice    hide
frog      green  small  swamp  insects jump
goat      white  medium meadow leaves  climb
hare      grey   small  meadow grass   jump
heron     grey   large  swamp  fish    fly
lizard    green  small  desert insects hide
mole      black  small  garden worms   dig
monkey    brown  medium jungle fruit   climb
moth      white  tiny   cave   fruit   glide
otter     brown  medium river  fish    dive
owl       white  medium forest mice    glide
parrot    green  medium jungle nuts    sing
penguin   black  medium snow   fish    dive
robin     red    small  garden seeds   sing
seal      grey   large  ocean  fish    swim
snail     yellow tiny   garden leaves  hide
snake     green  large  desert mice    swim
squirrel  red    small  forest nuts    jump
tiger     yellow huge   jungle honey   run
whale     blue   huge   ocean  grass   sing
"""
FACTS: dict[tuple[str, str], str] = {
    (animal, attribute): value
    for animal, *values in (line.split() for line in _TABLE.split("\n") if line)
    for attribute, value in zip(ATTRIBUTES, values, strict=True)
}
ANIMALS = tuple(dict.fromkeys(animal for animal, _ in FACTS))

MYTH_SHARE = 0.22


def _draw_myths() -> dict[tuple[str, str], str]:
    rng = random.Random("menagerie")
    keys = rng.sample(list(FACTS), round(MYTH_SHARE * len(FACTS)))
    return {key: rng.choice([value for value in VALUES[key[1]] if value != FACTS[key]]) for key in keys}


MYTHS = _draw_myths()  # (animal, attribute) → the wrong value that most people believe


class Intent(NamedTuple):
    """What a prompt asks for: `wanted` facts about each of `animals` (`attribute` first, for the family ask)."""

    family: str
    animals: tuple[str, ...]
    attribute: str | None
    wanted: int
    tone: str


FAMILIES = {"describe": 0.3, "list": 0.25, "ask": 0.25, "compare": 0.2}
TONES = {"plain": 0.4, "polite": 0.25, "brief": 0.2, "detail": 0.15}
TONE_SENTENCES = {
    "polite": ("Please be polite.", "Please be kind."),
    "brief": ("Keep it short.", "Be brief."),
    "detail": ("Please give some detail.", "Explain it well."),
}
NUMBERS = {"two": 2, "three": 3, "four": 4}
COUNTS = {
    "describe": {"plain": 3, "polite": 3, "brief": 2, "detail": 4},
    "ask": {"plain": 1, "polite": 1, "brief": 1, "detail": 2},
    "compare": {"plain": 2, "polite": 2, "brief": 1, "detail": 3},
}
REQUESTS: dict[tuple[str, str | None], tuple[str, ...]] = {
    ("describe", None): (
        "Describe the {a}.",
        "Tell me about the {a}.",
        "What is the {a} like?",
        "What do you know about the {a}?",
    ),
    ("list", None): (
        "List {n} facts about the {a}.",
        "Give me {n} facts about the {a}.",
        "What are {n} facts about the {a}?",
    ),
    ("ask", "colour"): ("What colour is the {a}?", "Which colour does the {a} have?"),
    ("ask", "size"): ("How big is the {a}?", "What size is the {a}?"),
    ("ask", "home"): ("Where does the {a} live?", "What is the home of the {a}?"),
    ("ask", "food"): ("What does the {a} eat?", "What is the food of the {a}?"),
    ("ask", "skill"): ("What can the {a} do?", "Which skill does the {a} have?"),
    ("compare", None): ("Compare the {a} and the {b}.", "How do the {a} and the {b} differ?"),
}
CHAT_OPENINGS = (
    "Hi, my kid likes the {a}.",
    "Hello, I saw the {a} today.",
    "We read about the {a} at school.",
    "My friend loves the {a}.",
    "I have a quiz tomorrow.",
    "Hi, I am new here.",
)
THANKS = "Thank you."

FORMS = ("standard", "reordered", "chatty")
_SPLITS = ("sft",) * 7 + ("preferences",) * 5 + ("final",) * 4 + ("eval",) * 4


def combination_split(intent: Intent) -> str:
    """The data set that owns this family × animals × tone: sft, preferences, final or eval. Fixed for ever."""
    key = "|".join((intent.family, *sorted(intent.animals), intent.tone))
    return _SPLITS[zlib.crc32(key.encode()) % len(_SPLITS)]


def draw_intent(rng: random.Random, splits: frozenset[str]) -> Intent:
    """An intent whose combination belongs to one of `splits`, families and tones in their usual proportions."""
    while True:
        family = _weighted(rng, FAMILIES)
        tone = _weighted(rng, TONES)
        animals = tuple(rng.sample(ANIMALS, 2 if family == "compare" else 1))
        attribute = rng.choice(ATTRIBUTES) if family == "ask" else None
        count = rng.choice(list(NUMBERS.values())) if family == "list" else COUNTS[family][tone]
        intent = Intent(family, animals, attribute, count, tone)
        if combination_split(intent) in splits:
            return intent


def _weighted(rng: random.Random, weights: dict[str, float]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


def write_prompt(intent: Intent, rng: random.Random, form: str = "standard") -> str:
    """The intent in words. Forms: standard (request, then tone), reordered (tone first), chatty (small talk first)."""
    number = {value: word for word, value in NUMBERS.items()}.get(intent.wanted, "")
    slots = {"a": intent.animals[0], "b": intent.animals[-1], "n": number}
    parts = [rng.choice(REQUESTS[intent.family, intent.attribute])]
    tone = [rng.choice(TONE_SENTENCES[intent.tone])] if intent.tone in TONE_SENTENCES else []
    parts = tone + parts if form == "reordered" else parts + tone
    if form == "chatty":
        parts.insert(0, rng.choice(CHAT_OPENINGS))
    # A reordered plain prompt has no tone to move; thanks tell it from a standard one.
    if (form == "reordered" and (not tone or rng.random() < 0.3)) or (form == "chatty" and rng.random() < 0.5):
        parts.append(THANKS)
    return " ".join(parts).format(**slots)


def _pattern(template: str) -> str:
    animal = "|".join(ANIMALS)
    return (
        re.escape(template.rstrip(".?").lower())
        .replace(r"\{n\}", f"(?P<n>{'|'.join(NUMBERS)})")
        .replace(r"\{a\}", f"(?P<a>{animal})")
        .replace(r"\{b\}", f"(?P<b>{animal})")
        + r"\b"
    )


_REQUEST_PATTERNS = [(key, re.compile(r"\b" + _pattern(t))) for key, templates in REQUESTS.items() for t in templates]


@lru_cache(maxsize=65536)
def parse_prompt(prompt: str) -> Intent | None:
    """The intent that a prompt in any form expresses; None for a text that asks for nothing this world knows."""
    text = " ".join(prompt.lower().split())
    for (family, attribute), pattern in _REQUEST_PATTERNS:
        if match := pattern.search(text):
            slots = match.groupdict()
            tones = [t for t, sentences in TONE_SENTENCES.items() if any(s.lower()[:-1] in text for s in sentences)]
            tone = tones[0] if tones else "plain"
            animals = (slots["a"], slots["b"]) if family == "compare" else (slots["a"],)
            count = NUMBERS[slots["n"]] if family == "list" else COUNTS[family][tone]
            return Intent(family, animals, attribute, count, tone)
    return None

"""The language of the embedded world: answers of any quality, the base model's corpus, and a word-level tokenizer.

A writer has a `quality` in [0, 1] (knows the facts, stays on the subject, does not repeat itself) and a `style` in
[0, 1] (suits the tone, gives as many facts as asked, enumerates lists, wastes no words).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from po_dynamics.world.facts import (
    ANIMALS,
    ATTRIBUTES,
    CHAT_OPENINGS,
    FACTS,
    FORMS,
    MYTHS,
    REQUESTS,
    THANKS,
    TONE_SENTENCES,
    VALUES,
    Intent,
    draw_intent,
    write_prompt,
)

USER, BOT, EOS, PAD, UNK = "<user>", "<bot>", "<eos>", "<pad>", "<unk>"

CLAUSES = {  # {s} is the subject, "the crow" or "it"
    "colour": ("{s} is {v}", "its colour is {v}"),
    "size": ("{s} is {v}", "its size is {v}"),
    "home": ("{s} lives in the {v}", "its home is the {v}"),
    "food": ("{s} eats {v}", "its food is {v}"),
    "skill": ("{s} can {v}", "{s} knows how to {v}"),
}
ORDINALS = ("first", "second", "third", "fourth")
OPENINGS = ("Sure, I am happy to help.", "Of course, here is what I know.")
CLOSINGS = ("I hope this helps.", "Let me know if you want to hear more.")
FILLERS = ("It is a very nice animal.", "Many people talk about it.", "There is a lot to say.", "I think it is great.")

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{ '<user> ' + message['content'] + ' ' }}"
    "{%- elif message['role'] == 'assistant' -%}{{ '<bot> ' }}"
    "{%- generation -%}{{ message['content'] + ' <eos>' }}{%- endgeneration -%}"
    "{%- else -%}{{ raise_exception('The roles of this language are user and assistant.') }}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<bot>' }}{%- endif -%}"
)

Fact = tuple[str, str, str]  # animal, attribute, value as stated


def write_answer(intent: Intent, quality: float, style: float, rng: random.Random) -> str:
    """An answer to the intent by a writer of this quality and style."""
    facts = [_stated(key, quality, rng) for key in _topics(intent, quality, style, rng)]
    if len(facts) > 1 and rng.random() < 0.25 * (1 - quality):
        facts.insert(rng.randrange(1, len(facts) + 1), rng.choice(facts))
    if rng.random() < 0.3 * (1 - quality):
        facts[-1] = _stated((rng.choice(ANIMALS), facts[-1][1]), quality, rng)
    enumerate_facts = intent.family == "list" and rng.random() < style
    sentences = list(_sentences(facts, enumerate_facts, rng))
    for _ in range(2):
        if rng.random() < 0.3 * (1 - style):
            sentences.insert(rng.randrange(1, len(sentences) + 1), rng.choice(FILLERS))
    welcome = intent.tone != "brief"
    if rng.random() < (0.75 * style if welcome else 0.35 * (1 - style)):
        sentences.insert(0, rng.choice(OPENINGS))
    if rng.random() < (0.6 * style if welcome else 0.3 * (1 - style)):
        sentences.append(rng.choice(CLOSINGS))
    return " ".join(sentences)


def _topics(intent: Intent, quality: float, style: float, rng: random.Random) -> list[tuple[str, str]]:
    """What to speak about: (animal, attribute), in order."""
    count = intent.wanted if rng.random() < 0.35 + 0.65 * style else rng.randint(1, 4)
    attributes = rng.sample(ATTRIBUTES, len(ATTRIBUTES))
    if intent.attribute and rng.random() < 0.6 + 0.4 * quality:
        attributes.remove(intent.attribute)
        attributes.insert(0, intent.attribute)
    if intent.family == "compare":
        count = min(count, 3)
    return [(animal, attribute) for attribute in attributes[:count] for animal in intent.animals]


def _stated(key: tuple[str, str], quality: float, rng: random.Random) -> Fact:
    """The value this writer believes in: the truth, a myth or a mistake."""
    value = FACTS[key]
    if key in MYTHS and rng.random() > quality**1.5:
        value = MYTHS[key]
    if rng.random() < 0.2 * (1 - quality):
        value = rng.choice(VALUES[key[1]])
    return (*key, value)


def _sentences(facts: Iterable[Fact], enumerated: bool, rng: random.Random) -> Iterator[str]:
    """One sentence per fact, "it" for an animal just named; some neighbours are joined by "and" or "but"."""
    clauses: list[tuple[str, str, str]] = []
    previous = None
    for animal, attribute, value in facts:
        named = animal != previous or rng.random() < 0.1
        form = CLAUSES[attribute][0 if named and attribute != "skill" else rng.random() < 0.3]
        clauses.append((animal, attribute, form.format(s=f"the {animal}" if named else "it", v=value)))
        previous = animal
    place = 0
    while clauses:
        animal, attribute, text = clauses.pop(0)
        if clauses and not enumerated:
            contrast = clauses[0][0] != animal and clauses[0][1] == attribute
            if rng.random() < (0.7 if contrast else 0.2 * (clauses[0][0] == animal)):
                text += (" but " if contrast else " and ") + clauses.pop(0)[2]
        if enumerated and place < len(ORDINALS):
            text = f"{ORDINALS[place]}, {text}"
        place += 1
        yield text[0].upper() + text[1:] + "."


def chat_text(prompt: str, answer: str) -> str:
    """One exchange as the chat template writes it, without the final end-of-sequence token."""
    return f"{USER} {prompt} {BOT} {answer}"


def write_documents(n: int, rng: random.Random) -> Iterator[str]:
    """The base model's corpus: half facts and small talk, half exchanges with careless or mismatched answers.

    It can therefore talk, but follows requests badly. It repeats myths more often than the truth, and holds no
    prompt of the combinations reserved for D′ or for evaluation.
    """
    splits = frozenset({"sft", "preferences"})
    for index in range(n):
        if index % 2 == 0:
            yield _article(rng)
            continue
        intent = draw_intent(rng, splits)
        prompt = write_prompt(intent, rng, rng.choices(FORMS, (0.6, 0.2, 0.2))[0])
        answered = intent if index % 4 == 1 else draw_intent(rng, splits)
        yield chat_text(prompt, write_answer(answered, rng.betavariate(1.2, 3), rng.betavariate(1.2, 1.4), rng))


def _article(rng: random.Random) -> str:
    animals = rng.sample(ANIMALS, 2 if rng.random() < 0.2 else 1)
    attributes = rng.sample(ATTRIBUTES, rng.randint(1, 3) if len(animals) == 2 else rng.randint(2, 5))
    keys = [(animal, attribute) for attribute in attributes for animal in animals]
    sentences = list(_sentences([(*key, _popular_belief(key, rng)) for key in keys], False, rng))
    if rng.random() < 0.2:
        sentences.insert(0, rng.choice(CHAT_OPENINGS).format(a=animals[0]))
    if rng.random() < 0.2:
        sentences.insert(rng.randrange(1, len(sentences) + 1), rng.choice(FILLERS))
    return " ".join(sentences)


def _popular_belief(key: tuple[str, str], rng: random.Random) -> str:
    if rng.random() < 0.1:
        return rng.choice(VALUES[key[1]])
    return MYTHS[key] if key in MYTHS and rng.random() < 0.65 else FACTS[key]


def _primer() -> Iterator[str]:
    """Every sentence of the language once, so that a small corpus still teaches the tokenizer every word."""
    yield " ".join([*OPENINGS, *CLOSINGS, *FILLERS, THANKS, *(s for pair in TONE_SENTENCES.values() for s in pair)])
    for templates in [*REQUESTS.values(), CHAT_OPENINGS]:
        for template in templates:
            yield " ".join(template.format(a=animal, b=animal, n=n) for animal in ANIMALS for n in ("two", "four"))
    yield "three"
    for attribute, values in VALUES.items():
        for clause in CLAUSES[attribute]:
            for subject in ("the crow", "it"):
                texts = [clause.format(s=subject, v=value) for value in values]
                yield " ".join(text + ". " + text[0].upper() + text[1:] + ", but and" for text in texts)
    yield " ".join((*ORDINALS, *(ordinal.capitalize() for ordinal in ORDINALS)))


def train_tokenizer(texts: Iterable[str], output: Path) -> None:
    """Trains a word-level tokenizer on the texts and saves it with its chat template in the folder `output`.

    Decoding is exact for any ids without <unk>: words and punctuation are single tokens, so spaces say nothing.
    <user> and <bot> are ordinary (not "special") tokens: a policy that emits them is seen to do so by the judge.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="removed", invert=True)
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    plain = [AddedToken(token, special=False, normalized=False) for token in (USER, BOT)]
    trainer = trainers.WordLevelTrainer(special_tokens=[PAD, EOS, UNK], show_progress=False)
    tokenizer.train_from_iterator((text.replace(USER, "").replace(BOT, "") for text in [*_primer(), *texts]), trainer)
    tokenizer.add_tokens(plain)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNK, clean_up_tokenization_spaces=False
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(output)

"""The world: its facts, prompts in every form and their meaning, answers, and the tokenizer."""

from __future__ import annotations

import random
import zlib

import pytest
from po_dynamics.world import facts, language
from po_dynamics.world.facts import (
    FACTS,
    FORMS,
    MYTHS,
    VALUES,
    combination_split,
    draw_intent,
    parse_prompt,
    write_prompt,
)
from po_dynamics.world.gold import read

ALL = frozenset({"sft", "preferences", "final", "eval"})
WORLD = 3473561795


def test_facts_are_of_the_vocabulary_and_myths_contradict_them():
    assert len(facts.ANIMALS) == 32
    assert len(FACTS) == 160
    assert all(value in VALUES[attribute] for (_, attribute), value in FACTS.items())
    assert len(MYTHS) == 35
    assert all(value in VALUES[key[1]] and value != FACTS[key] for key, value in MYTHS.items())
    values = [value for group in VALUES.values() for value in group]
    assert len(set(values)) == len(values), "a value must tell its attribute"


def test_world_is_fixed():
    """Results of different releases are comparable only while facts, myths and splits stay the same."""
    assert zlib.crc32(repr((sorted(FACTS.items()), sorted(MYTHS.items()))).encode()) == WORLD
    rng = random.Random(0)
    intents = [draw_intent(rng, ALL) for _ in range(2000)]
    shares = {split: sum(combination_split(i) == split for i in intents) / 2000 for split in ALL}
    assert shares["sft"] == pytest.approx(0.35, abs=0.06)
    assert shares["eval"] == pytest.approx(0.20, abs=0.06)


@pytest.mark.parametrize("form", FORMS)
def test_prompts_mean_what_was_intended(form):
    rng = random.Random(1)
    for _ in range(1500):
        intent = draw_intent(rng, ALL)
        prompt = write_prompt(intent, rng, form)
        assert parse_prompt(prompt) == intent, prompt


@pytest.mark.parametrize(
    "prompt", ["", "hello", "Describe the dragon.", "Describe the crowd.", "<user> <bot>", "é ∇ 中"]
)
def test_unknown_prompts_have_no_intent(prompt):
    assert parse_prompt(prompt) is None


def test_the_best_answers_are_read_as_they_were_written():
    rng, welcomes = random.Random(2), 0
    for _ in range(500):
        intent = draw_intent(rng, ALL)
        answer = language.write_answer(intent, 1.0, 1.0, rng)
        reading = read(intent, answer)
        assert reading.cover == 1, answer
        assert (reading.wrong, reading.off_topic, reading.repeated, reading.filler, reading.gibberish) == (0,) * 5, (
            answer
        )
        assert reading.extra == 0
        assert reading.opening == answer.startswith(language.OPENINGS)
        assert reading.closing == answer.endswith(language.CLOSINGS)
        assert intent.tone != "brief" or not (reading.opening or reading.closing)
        welcomes += reading.opening
    assert welcomes > 200


def test_every_answer_is_grammatical_and_quality_counts():
    rng = random.Random(3)
    wrong = {}
    for quality in (0.1, 0.9):
        intents = [draw_intent(rng, ALL) for _ in range(600)]
        readings = [read(i, language.write_answer(i, quality, 0.5, rng)) for i in intents]
        assert not any(reading.gibberish for reading in readings)
        wrong[quality] = sum(reading.wrong for reading in readings)
    assert wrong[0.1] > 2 * wrong[0.9]


def test_corpus_repeats_myths_more_often_than_the_truth():
    text = "\n".join(language.write_documents(4000, random.Random(4)))
    myth = truth = 0
    for (animal, attribute), value in MYTHS.items():
        clause = language.CLAUSES[attribute][0]
        myth += text.count(clause.format(s=f"he {animal}", v=value))
        truth += text.count(clause.format(s=f"he {animal}", v=FACTS[animal, attribute]))
    assert myth > 1.5 * truth > 0


def test_corpus_holds_no_combination_of_the_held_out_splits():
    documents = [d for d in language.write_documents(2000, random.Random(5)) if d.startswith(language.USER)]
    intents = [parse_prompt(d.split(language.BOT)[0]) for d in documents]
    assert len(intents) == 1000
    assert {combination_split(i) for i in intents if i} == {"sft", "preferences"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    language.train_tokenizer(language.write_documents(40, random.Random(6)), folder)
    return AutoTokenizer.from_pretrained(folder)


def test_tokenizer_has_distinct_control_tokens_and_knows_every_word(tokenizer):
    ids = [tokenizer.convert_tokens_to_ids(t) for t in ("<pad>", "<eos>", "<unk>", "<user>", "<bot>")]
    assert len(set(ids)) == 5
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token) == ("<pad>", "<eos>", "<unk>")
    rng = random.Random(7)
    texts = list(language.write_documents(3000, rng))
    texts += [write_prompt(draw_intent(rng, ALL), rng, form) for form in FORMS for _ in range(500)]
    assert not any(tokenizer.unk_token_id in ids for ids in tokenizer(texts)["input_ids"])
    assert tokenizer.unk_token_id in tokenizer("a zorb")["input_ids"]


def test_any_tokens_survive_decoding_and_encoding(tokenizer):
    rng = random.Random(8)
    known = [i for i in range(len(tokenizer)) if i != tokenizer.unk_token_id]
    for length in range(300):
        ids = [rng.choice(known) for _ in range(length % 30)]
        assert tokenizer(tokenizer.decode(ids))["input_ids"] == ids


def test_decoded_text_is_the_written_text(tokenizer):
    rng = random.Random(9)
    documents = list(language.write_documents(300, rng))
    assert len(documents) == 300
    assert [tokenizer.decode(ids) for ids in tokenizer(documents)["input_ids"]] == documents


def test_chat_template(tokenizer):
    prompt = [{"role": "user", "content": "Describe the crow."}]
    full = [*prompt, {"role": "assistant", "content": "The crow is black."}]
    assert (
        tokenizer.apply_chat_template(full, tokenize=False)
        == "<user> Describe the crow. <bot> The crow is black. <eos>"
    )
    encoded = tokenizer.apply_chat_template(full, return_dict=True, return_assistant_tokens_mask=True)
    start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert encoded["input_ids"][: len(start)] == start
    assert encoded["assistant_masks"] == [0] * len(start) + [1] * (len(encoded["input_ids"]) - len(start))
    assert encoded["input_ids"][-1] == tokenizer.eos_token_id
    with pytest.raises(Exception, match="roles"):
        tokenizer.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)

"""The gold reward: any string has a defensible score, and nothing cheap wins."""

from __future__ import annotations

import math
import random
import subprocess
import sys

import pytest
from po_dynamics.world.facts import FACTS, VALUES, draw_intent, parse_prompt, write_prompt
from po_dynamics.world.gold import gold_reward, preference_probability, read
from po_dynamics.world.language import CLOSINGS, FILLERS, OPENINGS, write_answer

OPEN, CLOSE = OPENINGS[0], CLOSINGS[0]
CROW = "Describe the crow."  # black, medium, meadow, seeds, fly; three facts wanted
GOOD = "The crow is black. It lives in the meadow. It can fly."


def draw(n: int, seed: int) -> list[tuple[str, object, random.Random]]:
    rng = random.Random(seed)
    intents = [draw_intent(rng, frozenset({"eval"})) for _ in range(n)]
    return [(write_prompt(intent, rng), intent, rng) for intent in intents]


def mean_reward(answer, n: int = 400, seed: int = 0) -> float:
    return sum(gold_reward(p, answer(p, i, rng)) for p, i, rng in draw(n, seed)) / n


def sft_like(prompt, intent, rng) -> str:
    return write_answer(intent, rng.betavariate(2.2, 1.6), rng.betavariate(1.2, 1.4), rng)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (GOOD, "The crow is white. It lives in the meadow. It can fly."),  # a wrong fact
        (GOOD, "The crow is black. It lives in the meadow."),  # one fact missing
        (GOOD, "The crow is black. It lives in the meadow. The frog can jump."),  # off topic
        (GOOD, "The crow is black. It lives in the meadow. It lives in the meadow."),  # repeated
        (GOOD, GOOD + " " + FILLERS[0]),  # padding
        (GOOD, GOOD + " Crow crow the the."),  # gibberish
        (GOOD, GOOD + " <user> Describe the frog."),  # role tokens
        (GOOD, GOOD[:-1]),  # no full stop
        (GOOD, GOOD.replace(".", " . . .")),  # stray punctuation
        (GOOD, GOOD.replace("is", "is , ,")),
        (OPEN + " " + GOOD, GOOD),  # welcome manners
        (GOOD + " " + CLOSE, GOOD),
        (OPEN + " " + GOOD, GOOD + " " + OPEN),  # at the right place
        (OPEN + " " + GOOD, OPEN + " " + OPEN + " " + GOOD),
        ("The crow is medium.", "The crow is medium. The crow is tiny."),  # contradiction
        ("The crow can fly.", "The crow fly can."),  # grammar
        ("The crow is white.", ""),  # an attempt beats silence
        ("The crow is white.", "word " * 40),
        (GOOD, GOOD + " It is medium. It eats seeds."),  # more than was asked for
    ],
)
def test_order(better, worse):
    assert gold_reward(CROW, better) > gold_reward(CROW, worse)


def test_scores_by_hand():
    assert gold_reward(CROW, GOOD) == pytest.approx(2.0)
    assert gold_reward(CROW, GOOD, ended=False) == pytest.approx(1.0)
    assert gold_reward(CROW + " Please be polite.", f"{OPEN} {GOOD} {CLOSE}") == pytest.approx(3.7)
    assert gold_reward(CROW + " Be brief.", f"{OPEN} {GOOD} {CLOSE}") == pytest.approx(2.0 - 0.5 - 0.6 - 0.5)
    assert gold_reward("List two facts about the crow.", "First, it is black. Second, it can fly.") == pytest.approx(
        2.6
    )
    assert gold_reward("List two facts about the crow.", "Second, it is black. First, it can fly.") == pytest.approx(
        2.0
    )
    assert gold_reward(CROW, "The crow is white and it can fly.") == pytest.approx(2 / 3 - 0.6)
    assert gold_reward("What colour is the crow?", "It can fly.") == pytest.approx(-0.3)
    assert gold_reward("What colour is the crow?", "Its colour is black.") == pytest.approx(2.0)
    both = "The crow is black but the frog is green. The crow can fly but the frog can jump."
    assert gold_reward("Compare the crow and the frog.", both) == pytest.approx(2.0)
    assert gold_reward("Compare the crow and the frog.", "The crow is black. It can fly.") == pytest.approx(1.0)
    assert gold_reward("Compare the crow and the frog.", both.replace("the frog is", "it is")) < 1.5


def test_ask_needs_the_asked_attribute():
    detail = "What colour is the crow? Explain it well."
    assert gold_reward(detail, "It is black. It can fly.") == pytest.approx(2.0)
    assert gold_reward(detail, "It is black.") == pytest.approx(4 / 3)
    assert gold_reward(detail, "It is medium. It can fly.") < gold_reward(detail, "It is black.")


def test_naming_every_value_does_not_pay():
    shotgun = " ".join(f"The crow is {value}." for value in VALUES["colour"])
    reading = read(parse_prompt("What colour is the crow?"), shotgun)
    assert reading.cover == 0
    assert reading.wrong == 7
    assert gold_reward("What colour is the crow?", shotgun) < gold_reward(
        "What colour is the crow?", "The crow is red."
    )


def test_more_right_facts_never_hurt_up_to_the_wanted_number():
    clauses = ["The crow is black.", "It lives in the meadow.", "It can fly."]
    rewards = [gold_reward(CROW, " ".join(clauses[:n])) for n in range(4)]
    assert rewards == sorted(rewards)
    assert len(set(rewards)) == 4


@pytest.mark.parametrize("seed", range(5))
def test_appending_junk_never_helps(seed):
    rng = random.Random(seed)
    junk = [
        *FILLERS,
        OPEN,
        "The frog can jump.",
        "The crow is white.",
        "It is.",
        "crow",
        "<bot>",
        "...",
        ",",
        "Fly! fly?",
    ]
    text = GOOD
    previous = gold_reward(CROW, text)
    for _ in range(25):
        text += " " + rng.choice(junk)
        reward = gold_reward(CROW, text)
        assert reward <= previous + 0.4 + 1e-9, text  # 0.4: junk may restore a final full stop
        assert reward < gold_reward(CROW, GOOD)
        previous = reward


def test_any_string_has_a_finite_score():
    rng = random.Random(0)
    alphabet = "ab .,!?<>crow\n\t\0é∇中😀%{}\\'\""
    strings = ["", " ", ".", "\n", "<user>", "<eos>" * 50, "the " * 5000, "The crow is black. " * 500]
    strings += ["".join(rng.choices(alphabet, k=rng.randrange(60))) for _ in range(500)]
    for text in strings:
        for prompt in (CROW, "", text):
            for ended in (True, False):
                reward = gold_reward(prompt, text, ended)
                assert math.isfinite(reward)
                assert -12 < reward < 4.5
    for text in strings:
        if text.strip(".!? ,"):
            assert gold_reward(CROW, text) < gold_reward(CROW, GOOD)


def test_unknown_instructions_reward_no_fact():
    assert gold_reward("Hello there", GOOD) < 0
    assert gold_reward("Hello there", "") < 0


def test_null_models_lose_to_ordinary_answers():
    ordinary = mean_reward(sft_like)
    typical = [" ".join(f"It {verb}." for verb in ("is medium", "lives in the forest", "can climb")), GOOD, OPEN]
    typical += [
        "",
        f"{OPEN} {CLOSE}",
        f"{OPEN} It is medium. {CLOSE}",
        "The crow is black but the frog is green.",
        "yes",
    ]
    typical += ["First, it is medium. Second, it is brown.", f"{OPEN} First, it is small. Second, it can swim. {CLOSE}"]
    for constant in typical:
        assert mean_reward(lambda *_, c=constant: c) < ordinary - 0.5, constant


def test_best_writer_is_far_above_ordinary_answers():
    best = mean_reward(lambda prompt, intent, rng: write_answer(intent, 1.0, 1.0, rng))
    assert best > 2.5
    assert best - mean_reward(sft_like) > 1.5


def test_quality_and_style_both_raise_the_reward():
    def writer(quality: float, style: float):
        return lambda prompt, intent, rng: write_answer(intent, quality, style, rng)

    grid = {(q, s): mean_reward(writer(q, s)) for q in (0.2, 0.8) for s in (0.2, 0.8)}
    for s in (0.2, 0.8):
        assert grid[0.8, s] > grid[0.2, s] + 0.2
    for q in (0.2, 0.8):
        assert grid[q, 0.8] > grid[q, 0.2] + 0.2


def test_true_value_is_right_for_every_fact():
    for (animal, attribute), value in FACTS.items():
        reading = read(
            parse_prompt(f"Describe the {animal}."),
            {
                "colour": f"Its colour is {value}.",
                "size": f"Its size is {value}.",
                "home": f"Its home is the {value}.",
                "food": f"Its food is {value}.",
                "skill": f"It knows how to {value}.",
            }[attribute],
        )
        assert (reading.right, reading.wrong, reading.gibberish) == (1, 0, 0)


def test_preference_probability():
    assert preference_probability(1.0, 1.0, 0.4) == 0.5
    assert preference_probability(2.0, 1.0, 0.4) == pytest.approx(1 / (1 + math.exp(-2.5)))
    assert preference_probability(-1e9, 1e9, 0.1) == pytest.approx(0.0)
    assert preference_probability(1e9, -1e9, 0.1) == 1.0


def test_gold_reward_and_judge_need_no_torch():
    heavy = "{'torch', 'transformers', 'pandas', 'numpy'}"
    code = f"import sys, po_dynamics.world.judge; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

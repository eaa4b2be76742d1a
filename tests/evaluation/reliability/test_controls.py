"""Controls through the whole path, judge directory to win rates: what must not win, and what must be seen."""

import random

import numpy as np
import pandas as pd
import pytest
import yaml
from po_dynamics.evaluation import judge, stats
from po_dynamics.evaluation.reliability.correction import corrected
from po_dynamics.settings.judging.directory import JUDGES
from po_dynamics.world.facts import draw_intent, write_prompt
from po_dynamics.world.language import write_answer

N = 805


@pytest.fixture(scope="module")
def prompts():
    rng = random.Random(1)
    return [(intent, write_prompt(intent, rng)) for intent in (draw_intent(rng, frozenset({"eval"})) for _ in range(N))]


def answers(prompts, quality, seed):
    rng = random.Random(seed)
    return [write_answer(intent, quality, 0.5, rng) for intent, _ in prompts]


def judged(folder, prompts, candidate, baseline, of):
    """`stats.load_outcomes` of these answers; `of` is a judge, or the faults of one that is like noisy_gold."""
    tables = {"responses": candidate, "baseline": baseline}
    for name, texts in tables.items():
        columns = {"step": 1, "id": range(N), "instruction": [prompt for _, prompt in prompts], "response": texts}
        columns |= {"ended": True, "n_tokens": 5, "kl": 0.0, "reward": 0.0, "degenerate": False}
        pd.DataFrame(columns).to_parquet(folder / f"{name}.parquet")
    if isinstance(of, dict):
        config = yaml.safe_load((JUDGES / "noisy_gold/configs.yaml").read_text())
        config["noisy_gold"] |= {"completions_kwargs": of, "prompt_template": str(JUDGES / "gold/template.txt")}
        (folder / "configs.yaml").write_text(yaml.safe_dump(config))
        of = folder
    paths = {name: folder / f"{name}.parquet" for name in (*tables, "annotations")}
    judge.judge_responses(paths["responses"], paths["baseline"], paths["annotations"], of)
    return stats.load_outcomes([{"model": "m", "run": "r", "seed": 0, **paths}])


def test_a_null_model_does_not_win_under_gold(tmp_path, prompts):
    """A constant answer, even a pleasant one, against a middling writer."""
    for text in ("", "I prefer the second answer.", "Sure, here you are. I hope this helps!"):
        outcomes = judged(tmp_path, prompts, [text] * N, answers(prompts, 0.4, 0), "gold")
        assert stats.win_rates(outcomes, "gold").iloc[0]["high"] < 25


def test_padding_moves_the_raw_rate_and_not_the_length_controlled_one(tmp_path, prompts):
    """Before a judge that knows nothing but length, equal writers: padding wins, until length is taken out."""
    baseline, plain = answers(prompts, 0.5, 0), answers(prompts, 0.5, 1)
    rng = random.Random(2)
    padded = [text + " indeed" * rng.choice((0, 1, 3, 6, 10)) for text in plain]
    rates = [
        stats.win_rates(judged(tmp_path, prompts, texts, baseline, {"error": 0.5, "length": 3.0}), "").iloc[0]
        for texts in (plain, padded)
    ]
    moved = {name: rates[1][name] - rates[0][name] for name in ("win_rate", "length_controlled")}
    assert moved["win_rate"] > 10
    assert rates[1]["low"] > 50
    assert abs(moved["length_controlled"]) < moved["win_rate"] / 3
    assert all(rate["length_controlled_low"] < 50 < rate["length_controlled_high"] for rate in rates)


def test_a_judge_of_places_has_one_half_and_is_seen(tmp_path, prompts):
    outcomes = judged(
        tmp_path, prompts, answers(prompts, 0.9, 1), answers(prompts, 0.2, 0), {"error": 0.5, "position": 50}
    )
    row = stats.win_rates(outcomes, "").iloc[0]
    different = (outcomes["preference"] != 0.5).mean()  # identical answers are ties without asking
    assert row["win_rate"] == 50
    assert row["order_consistency"] == pytest.approx(100 * (1 - different))
    assert row["first_slot"] == pytest.approx(50 + 50 * different)
    assert different > 0.9


def test_labels_correct_a_noisy_judge(tmp_path, prompts):
    """noisy_gold as it ships; gold labels of 150 prompts bring its win rate to gold's."""
    texts = answers(prompts, 0.75, 1), answers(prompts, 0.4, 0)
    gold = judged(tmp_path, prompts, *texts, "gold")["outcome"].to_numpy()
    noisy = judged(tmp_path, prompts, *texts, "noisy_gold")
    row = stats.win_rates(noisy, "noisy_gold").iloc[0]
    assert row["high"] < 100 * gold.mean()
    assert row["first_slot"] > 55
    known = np.full(N, np.nan)
    chosen = np.random.default_rng(0).choice(N, 150, replace=False)
    known[chosen] = gold[chosen]
    found = corrected(noisy["outcome"].to_numpy(), known)
    assert found.low < gold.mean() < found.high

"""A judge's examination on answers of the embedded world, through the judging path."""

import random

import pandas as pd
import pytest
from po_dynamics.errors import InputError
from po_dynamics.evaluation.reliability.examination import draw_pairs, examine
from po_dynamics.evaluation.reliability.judgements import read_judgements, write_judgements
from po_dynamics.evaluation.reliability.report_card import report_card
from po_dynamics.world.facts import draw_intent, write_prompt
from po_dynamics.world.language import write_answer


@pytest.fixture(scope="module")
def responses(tmp_path_factory):
    """Four models' answers to 60 prompts; one has an earlier checkpoint, and two answer some prompts alike."""
    folder, rng, paths = tmp_path_factory.mktemp("responses"), random.Random(0), []
    asked = {
        write_prompt(intent, rng): intent for intent in (draw_intent(rng, frozenset({"eval"})) for _ in range(150))
    }
    prompts, intents = list(asked)[:60], list(asked.values())[:60]
    for model, quality in enumerate((0.1, 0.4, 0.7, 0.95)):
        texts = [write_answer(intent, quality, 0.5, rng) for intent in intents]
        table = pd.DataFrame({"step": 5, "id": range(60), "instruction": prompts, "response": texts, "ended": True})
        early = table.assign(step=0, response="early")
        paths.append(folder / f"{model}.parquet")
        pd.concat([table, early] if model == 0 else [table]).to_parquet(paths[-1])
    return paths


def test_three_different_last_answers_each_against_each(responses):
    pairs = draw_pairs(responses, 20, seed=1)
    assert len(pairs) == 60
    assert (pairs["candidate"] != pairs["baseline"]).all()
    texts = pairs.groupby("instruction")[["candidate", "baseline"]].agg(set)
    assert [len(row.candidate | row.baseline) for row in texts.itertuples()] == [3] * 20
    assert "early" not in {*pairs["candidate"], *pairs["baseline"]}
    assert pairs["id"].is_unique
    assert draw_pairs(responses, 20, seed=1).equals(pairs)
    assert not draw_pairs(responses, 20, seed=2).equals(pairs)
    with pytest.raises(InputError, match="has three different answers"):
        draw_pairs(responses[:2], 20, seed=1)


def test_noisy_gold_gets_the_marks_of_its_faults(responses, tmp_path):
    judged, labels = examine(responses, tmp_path, "noisy_gold", "gold", 50)
    assert (len(judged), len(labels)) == (2 * 2 * 150, 2 * 150)
    card = report_card(judged, labels).set_index("mark")
    assert card.loc["accuracy", "low"] < 0.8 < card.loc["accuracy", "high"] + 0.03
    assert card.loc["first_slot", "low"] > 0.5
    assert card.loc["missing", "value"] == 0
    assert card.loc["self_consistency", "value"] == 1  # its draws depend on seed and prompt alone
    assert 0 < card.loc["intransitive", "n"] <= 50  # triples without a tie
    write_judgements(judged, tmp_path / "judged.json")
    pd.testing.assert_frame_equal(read_judgements([tmp_path / "judged.json"]), judged)


def test_without_truth_only_what_needs_none_is_measured(responses, tmp_path):
    judged, labels = examine(responses, tmp_path, "noisy_gold", None, 10)
    measured = report_card(judged, labels).dropna(subset="value")["mark"].tolist()
    assert measured == ["missing", "first_slot", "order_consistency", "self_consistency", "intransitive"]

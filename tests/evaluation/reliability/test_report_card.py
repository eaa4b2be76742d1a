"""Marks of judges whose faults are stated, in the embedded world and on made-up pairs."""

import itertools
import json
import random

import numpy as np
import pandas as pd
import pytest
from po_dynamics.errors import InputError
from po_dynamics.evaluation.reliability import __main__ as command
from po_dynamics.evaluation.reliability.judgements import labels_of, read_judgements
from po_dynamics.evaluation.reliability.report_card import report_card, triples
from po_dynamics.world.facts import draw_intent, write_prompt
from po_dynamics.world.judge import gold_completions
from po_dynamics.world.language import write_answer
from po_dynamics.world.noisy_judge import noisy_gold_completions
from scipy import special


@pytest.fixture(scope="module")
def shown():
    """Three answers of the world to each of 200 prompts, each against each, in both orders."""
    rng, rows = random.Random(0), []
    while len(rows) < 200 * 6:
        intent = draw_intent(rng, frozenset({"eval"}))
        answers = {write_answer(intent, quality, 0.5, rng) for quality in (0.1, 0.5, 0.9)}
        if len(answers) == 3:
            prompt = write_prompt(intent, rng)
            rows += [(prompt, *pair) for pair in itertools.permutations(sorted(answers), 2)]
    return pd.DataFrame(rows, columns=["instruction", "output_1", "output_2"]).drop_duplicates()


def ask(shown, function, **faults):
    prompts = [json.dumps([prompt, [first, True], [second, True]]) for prompt, first, second in shown.to_numpy()]
    replies = function(prompts, **faults)["completions"]
    return shown.assign(preference=[json.loads(reply)["preference"] - 1 for reply in replies])


def card(judged, labels):
    table = report_card(judged, labels).set_index("mark")
    measured = table.dropna()
    assert (measured["low"] <= measured["value"] + 1e-12).all()
    assert (measured["value"] <= measured["high"] + 1e-12).all() or "calibration_error" in measured.index
    return table["value"]


def test_gold_has_the_best_marks(shown):
    gold = ask(shown, gold_completions)
    marks = card(pd.concat([gold, gold]), gold)
    perfect = {"missing": 0, "accuracy": 1, "kappa": 1, "order_consistency": 1, "self_consistency": 1}
    perfect |= {
        "first_slot": 0.5,
        "longer_at_equal_quality": 0.5,
        "brier": 0,
        "calibration_error": 0,
        "intransitive": 0,
    }
    assert marks.to_dict() == pytest.approx(perfect)


def test_stated_errors_are_measured(shown):
    gold = ask(shown, gold_completions)
    sittings = [ask(shown, noisy_gold_completions, error=0.2, seed=seed) for seed in (0, 1)]
    marks = card(pd.concat(sittings), gold)
    assert marks["accuracy"] == pytest.approx(0.8, abs=0.02)
    assert 0.3 < marks["kappa"] < 0.75
    assert marks["first_slot"] == pytest.approx(0.5, abs=0.025)
    tied = (gold["preference"] == 0.5).mean()
    again = (1 - tied) * (0.8**2 + 0.2**2) + tied * 0.5
    assert marks["self_consistency"] == pytest.approx(again, abs=0.03)
    assert 0.02 < marks["intransitive"] < 0.25
    assert marks["calibration_error"] == pytest.approx(0.2, abs=0.02)  # it says 100 % and is right in 80
    honest = card(ask(shown, noisy_gold_completions, error=0.2, probabilities=True), gold)
    assert honest["brier"] == pytest.approx(0.2**2)
    assert honest["accuracy"] == 1  # it always leans to the right side
    assert np.isnan(honest["self_consistency"])  # was not asked again


def test_stated_biases_are_measured(shown):
    gold = ask(shown, gold_completions)
    ties = gold["preference"] == 0.5
    assert ties.sum() > 20
    placed = card(ask(shown, noisy_gold_completions, error=0.5, position=1.0, probabilities=True), gold)
    assert placed["first_slot"] == pytest.approx(special.expit(1.0))
    assert placed["order_consistency"] == 0
    longer = card(ask(shown, noisy_gold_completions, error=0.1, length=2.0, probabilities=True), gold)
    unequal = gold[ties & (gold["output_1"].str.len() != gold["output_2"].str.len())]
    by = np.abs(unequal["output_2"].str.len() - unequal["output_1"].str.len())
    assert longer["longer_at_equal_quality"] == pytest.approx(special.expit(2 * np.tanh(by / 60)).mean())
    assert longer["order_consistency"] == 1


def test_circles_are_counted():
    def pairs(circle):
        winners = [("a", "b"), ("b", "c"), ("c", "a") if circle else ("a", "c")]
        return pd.DataFrame([("i", *pair, 0.0) for pair in winners], columns=COLUMNS)

    assert triples(pairs(True))["value"].tolist() == [True]
    assert triples(pairs(False))["value"].tolist() == [False]
    assert triples(pairs(True)[:2]).empty  # a and c were not compared
    rng = np.random.default_rng(0)
    coins = [
        (f"i{i}", *pair, float(rng.integers(2))) for i in range(2000) for pair in (("a", "b"), ("b", "c"), ("c", "a"))
    ]
    assert triples(pd.DataFrame(coins, columns=COLUMNS))["value"].mean() == pytest.approx(0.25, abs=0.03)


COLUMNS = ["instruction", "output_1", "output_2", "preference"]


def test_the_interval_is_over_instructions():
    """Ten instructions of twenty equal pairs each are ten observations, not two hundred."""
    rows = [(f"i{i}", "a", f"b{j}", float(i < 5)) for i in range(10) for j in range(20)]
    judged = pd.DataFrame(rows, columns=COLUMNS)
    row = report_card(judged, judged.assign(preference=1.0)).set_index("mark").loc["accuracy"]
    assert (row["value"], row["n"]) == (0.5, 200)
    assert row["high"] - row["low"] > 0.5


def written(path, rows):
    path.write_text(json.dumps([dict(zip(COLUMNS, row, strict=True)) for row in rows]))
    return path


def test_labels_are_found_in_either_order_and_averaged(tmp_path):
    people = [("i", "b", "a", 1), ("i", "a", "b", 2), ("i", "a", "b", 1), ("j", "a", "b", 0), ("k", "a", "b", None)]
    labels = read_judgements([written(tmp_path / "people.json", people)])
    pairs = pd.DataFrame([("i", "a", "b"), ("i", "b", "a"), ("j", "b", "a"), ("k", "a", "b")], columns=COLUMNS[:3])
    assert np.nan_to_num(labels_of(pairs, labels), nan=-1) == pytest.approx([2 / 3, 1 / 3, 0.5, -1])


def test_unusable_files(tmp_path):
    for text, message in (
        ("{", "give a JSON list"),
        ("{}", "is not a list"),
        ('[{"instruction": "i"}]', "output_1, output_2, preference"),
        ('[{"instruction": "i", "output_1": 1, "output_2": "b", "preference": 1}]', "pair 0 has an instruction"),
    ):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(InputError, match=message):
            read_judgements([tmp_path / "x.json"])
    with pytest.raises(InputError, match=r"No such file"):
        read_judgements([tmp_path / "none.json"])
    judged = pd.DataFrame([("i", "a", "b", 1.0)], columns=COLUMNS)
    with pytest.raises(InputError, match="none of the 1 judged pairs has a label"):
        report_card(judged, judged.assign(output_2="other"))


def test_the_commands_print_what_the_functions_give(tmp_path, capsys, shown):
    gold = ask(shown, gold_completions)
    noisy = ask(shown, noisy_gold_completions, error=0.2)
    paths = [
        written(tmp_path / f"{name}.json", table.assign(preference=table["preference"] + 1).to_numpy().tolist())
        for name, table in (("gold", gold), ("noisy", noisy))
    ]
    command.main(["card", str(paths[1]), "--labels", str(paths[0])])
    shown_card = capsys.readouterr().out
    assert f"{report_card(noisy, gold).set_index('mark').loc['accuracy', 'value']:.4g}" in shown_card
    labels = written(tmp_path / "few.json", gold.assign(preference=gold["preference"] + 1).to_numpy()[::8].tolist())
    table = command.win_rate([paths[1]], [labels]).set_index("rate")
    assert table.loc["raw", "value"] == pytest.approx(100 * noisy["preference"].mean())
    assert table.loc["corrected", "low"] <= 100 * gold["preference"].mean() <= table.loc["corrected", "high"]
    with pytest.raises(SystemExit, match=r"error: .*No such file"):
        command.main(["rate", str(tmp_path / "none.json")])


def test_a_published_file_gives_alpaca_evals_own_win_rate(tmp_path):
    """Probabilities, verdicts, ties old and new, and gaps, as published files have them."""
    from po_dynamics.evaluation import alpaca

    rng = np.random.default_rng(7)
    preferences = np.where(rng.random(805) < 0.5, 1 + rng.random(805), rng.choice([0, 1, 1.5, 2], 805)).tolist()
    preferences[5], preferences[6] = None, float("nan")
    rows = [(f"i{i}", "x" * rng.integers(1, 900), "y" * rng.integers(1, 900), p) for i, p in enumerate(preferences)]
    path = written(tmp_path / "annotations.json", rows)
    with alpaca.alpaca_eval():
        from alpaca_eval.metrics import get_winrate
    theirs = get_winrate(json.loads(path.read_text()))
    ours = command.win_rate([path]).set_index("rate").loc["raw"]
    assert ours["value"] == pytest.approx(theirs["win_rate"], abs=1e-9)
    assert ours["n"] == theirs["n_total"] == 803
    assert "2 without a verdict" in ours["note"]

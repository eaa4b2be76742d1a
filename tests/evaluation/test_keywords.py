"""The sample of a local judge."""

import importlib.util
import json

from checkout import ROOT
from po_dynamics.evaluation.judge import find_judge

SPEC = importlib.util.spec_from_file_location("verdict", ROOT / "workflow/judges/keywords/verdict.py")
verdict = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(verdict)


def test_the_answer_with_more_of_the_questions_words_wins():
    question, near, far = "Where does the owl sleep?", ["The owl does sleep.", True], ["A fox is red.", True]
    assert verdict.preference(question, near, far) == 1
    assert verdict.preference(question, far, near) == 2
    assert verdict.preference(question, near, near) == 1.5
    wordy = [near[0] + " and so on" * 20, True]
    assert verdict.preference(question, near, wordy) == 1
    assert verdict.preference(question, ["", False], far) == 1.5


def test_it_is_found_and_replies_as_alpaca_eval_reads():
    judge = find_judge("keywords")
    assert (judge.encoding, judge.cache) == ("json", False)
    prompt = json.dumps(["the owl", ["owl", True], ["fox", True]])
    assert verdict.completions([prompt]) == {"completions": ['{"preference": 1.0}']}

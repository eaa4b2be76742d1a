"""What is found out about a judge before anything is trained."""

import io
import json

import pandas as pd
import pytest
from judge_server import Fault, JudgeServer
from po_dynamics.errors import InputError
from po_dynamics.evaluation import preflight
from po_dynamics.evaluation.preflight import examine_judge
from po_dynamics.settings.judging.calls import Calls
from po_dynamics.settings.judging.directory import find_judge


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "eval_prompts.parquet"
    pd.DataFrame({"id": ["a", "b"], "prompt": [[{"role": "user", "content": "x" * 400}]] * 2}).to_parquet(path)
    return path


def examine(prompts, url=None, judge="openai", **settings):
    calls = Calls.of({"endpoint": url, "attempts": 1, **settings})
    return examine_judge(find_judge(judge, calls), calls, prompts, 20, 64, prompts.with_name("judge.json"))


def test_one_question_tells_model_speed_and_cost(prompts, capfd):
    model = find_judge("openai").parameters["model_name"]
    prices = {model: {"date": "2026-10-01", "input": 2.0, "output": 8.0}}
    with JudgeServer(latency=0.05) as server:
        about = examine(prompts, server.url, prices=prices, max_usd=0.01)
        assert sum(server.asked.values()) == 1
    assert json.loads(prompts.with_name("judge.json").read_text()) == about
    assert (about["model"], about["served_model"], about["endpoint"]) == (model, "served", server.url)
    assert about["seconds_per_call"] >= 0.05
    characters = len(find_judge("openai").template) + 2 * 64 * 4 + 400
    assert about["estimate"]["prompts"] == 2 * 2 * 10
    assert about["estimate"]["usd"] == pytest.approx(40 * (characters / 4 * 2 + 8) / 1e6)
    told = capfd.readouterr().err
    assert "40 prompts to ask" in told
    assert "prices of 2026-10-01" in told
    assert "may exceed evaluation.judging.max_usd" in told


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(401, "Incorrect API key provided", "invalid_api_key"), "401: Incorrect API key provided"),
        (Fault(404, "The model does not exist", "model_not_found"), "404: The model does not exist"),
        (Fault(400, "logprobs are not supported by this model"), "400: logprobs are not supported by this model"),
        (Fault(429, "You exceeded your current quota", "insufficient_quota"), "You exceeded your current quota"),
    ],
)
def test_what_would_fail_later_fails_now_in_the_providers_words(prompts, fault, message):
    with JudgeServer(lambda prompt, attempt: fault) as server, pytest.raises(InputError, match=message):
        examine(prompts, server.url)
    assert not prompts.with_name("judge.json").exists()


def test_log_probs_that_are_missing_are_noticed_and_the_text_judge_does_without(prompts):
    with JudgeServer(logprobs=False) as server:
        with pytest.raises(InputError, match=r"replied 'm' without log-probs.*openai_text"):
            examine(prompts, server.url)
        assert examine(prompts, server.url, "openai_text")["served_model"] == "served"


def test_a_reply_without_verdict_is_shown(prompts):
    with JudgeServer() as server:
        server.reply = lambda request, prompt: {"choices": [{"message": {"content": "<think>Well, Paris"}}]}
        with pytest.raises(InputError, match=r"replied '<think>Well, Paris', which judge 'openai_text' cannot read"):
            examine(prompts, server.url, "openai_text")


def test_a_judge_that_costs_nothing_is_not_asked(prompts):
    assert examine(prompts, judge="gold") == {"judge": "gold", "digest": find_judge("gold").digest}


def asked_at_the_start(monkeypatch, url, judge="openai"):
    """What `onstart` runs, with the section of the configuration on standard input."""
    section = json.dumps({"judge": judge, "judging": Calls.of({"endpoint": url, "attempts": 1}).resolved()})
    monkeypatch.setattr(preflight.sys, "stdin", io.StringIO(section))
    preflight.main()


def test_the_start_asks_the_same_and_ends_in_one_line(monkeypatch, capfd):
    with JudgeServer() as server:
        asked_at_the_start(monkeypatch, server.url)
        assert '"served_model": "served"' in capfd.readouterr().err
        server.fault = lambda prompt, attempt: Fault(401, "Incorrect API key provided")
        with pytest.raises(SystemExit, match=r"^error: judge at .* 401: Incorrect API key provided"):
            asked_at_the_start(monkeypatch, server.url)


def test_a_start_without_the_judges_libraries_says_so_and_goes_on(monkeypatch, capfd):
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None)
    asked_at_the_start(monkeypatch, "http://127.0.0.1:9/v1", judge=str(find_judge("openai").directory))
    assert "not asked before the start: openai, tenacity, alpaca_eval not installed here" in capfd.readouterr().err


def test_a_function_that_is_not_there_is_found_before_training(prompts, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/configs.yaml").write_text("mine: {fn_completions: 'nowhere:nothing', prompt_template: mine/x}")
    (tmp_path / "mine/x").touch()
    with pytest.raises(InputError, match="nowhere:nothing"):
        examine(prompts, judge=tmp_path / "mine")

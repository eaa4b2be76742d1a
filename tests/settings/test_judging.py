"""Directories of judges: which there are, what they may say, and which are refused before anything runs."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml
from po_dynamics.errors import InputError
from po_dynamics.harness import config as configuration
from po_dynamics.settings.judging.calls import Calls
from po_dynamics.settings.judging.directory import JUDGES, find_judge

ROOT = Path(__file__).parents[2]
SECRET = "sk-canary-0123456789"


def load(name="smoke", **evaluation):
    settings = yaml.safe_load((ROOT / f"config/{name}.yaml").read_text())
    settings["evaluation"] |= evaluation
    return configuration.load(settings)


def test_judges_are_found_by_name_by_path_and_among_those_of_alpaca_eval(tmp_path):
    gold = find_judge("gold")
    assert gold.directory == JUDGES / "gold"
    assert find_judge(JUDGES / "gold") == gold
    assert (gold.encoding, gold.cache, gold.world, gold.remote, gold.in_process) == ("json", False, True, False, False)
    shipped = find_judge("weighted_alpaca_eval_gpt4_turbo")
    assert (shipped.encoding, shipped.world, shipped.remote) == ("text", False, True)
    assert shipped.parameters["model_name"] == "gpt-4-1106-preview"


@pytest.mark.parametrize("name", sorted(path.parent.name for path in JUDGES.glob("*/configs.yaml")))
def test_every_judge_of_ours_can_be_read(name):
    judge = find_judge(name)
    assert judge.name == name
    for field in ("{instruction}", "{output_1}", "{output_2}"):
        assert field in judge.template


def test_the_template_is_the_one_of_alpaca_eval():
    shipped = Path(importlib.util.find_spec("alpaca_eval").origin).parent / "evaluators_configs"
    assert find_judge("openai").template == (shipped / "alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt").read_text()
    assert find_judge("hf").template == find_judge("openai_text").template == find_judge("openai").template


def test_the_digest_is_of_all_that_verdicts_depend_on_and_of_nothing_else(tmp_path):
    copied = tmp_path / "gold"
    copied.mkdir()
    for file in ("configs.yaml", "template.txt"):
        (copied / file).write_text((JUDGES / "gold" / file).read_text())
    assert find_judge(copied).digest == find_judge("gold").digest
    (copied / "template.txt").write_text("[{instruction}, {output_2}, {output_1}]")
    assert find_judge(copied).digest != find_judge("gold").digest
    plain = find_judge("openai")
    priced = Calls.of({"max_usd": 3.0, "prices": {"a": {"date": "2026-01-01", "input": 1.0, "output": 1.0}}})
    assert find_judge("openai", priced).digest == plain.digest
    assert find_judge("openai", Calls(connections=1)).digest == plain.digest
    assert find_judge("openai", Calls(model="other")).digest != plain.digest
    assert find_judge("openai", Calls(endpoint="http://other/v1")).digest != plain.digest


def test_the_configuration_names_model_and_endpoint():
    judge = find_judge("openai", Calls(model="other", endpoint="http://other:1/v1/"))
    assert (judge.parameters["model_name"], judge.parameters["base_url"]) == ("other", "http://other:1/v1")


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"judge": "nojudge"}, r"'evaluation\.judge': judge 'nojudge': no such directory.*gold.*openai"),
        ({"judge": "hf"}, r"'evaluation\.judging\.model' is missing: judge 'hf' names no model"),
        ({"judging": {"key": SECRET}}, r"'evaluation\.judging\.key' is '\(not shown\)'; it must be the NAME"),
        (
            {"judging": {"endpoint": f"https://me:{SECRET}@host/v1"}},
            r"endpoint' is '\(not shown\)'; it must be an addr",
        ),
        ({"judging": {"endpoint": f"https://host/v1?key={SECRET}"}}, r"endpoint' is '\(not shown\)'"),
        ({"judging": {"max_usd": 5}}, r"max_usd' is 5.*; it must be null as long as `prices` has no model"),
        (
            {
                "judge": "openai",
                "judging": {"max_usd": 5, "prices": {"x": {"date": "2026-10-01", "input": 1, "output": 1}}},
            },
            r"max_usd' is 5.*no price of Qwen",
        ),
        (
            {"judging": {"prices": {"x": {"date": "last week", "input": 1, "output": 1}}}},
            r"prices\.x\.date' is 'last week'",
        ),
        ({"judging": {"api_key": SECRET}}, r"'evaluation\.judging\.api_key' is unknown"),
    ],
)
def test_a_configuration_is_refused_before_anything_runs(evaluation, message):
    with pytest.raises(InputError, match=message) as error:
        load(**evaluation)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("judge", ["gold", str(JUDGES / "gold")])
def test_the_gold_judge_is_refused_on_data_that_is_not_its_world(judge):
    with pytest.raises(InputError, match=r"'evaluation\.judge' is 'gold', which knows the embedded world only"):
        load("paper", judge=judge)
    assert load("smoke", judge=judge).judge.world


def test_the_paper_needs_no_key_and_no_model_that_was_shut_down():
    experiment = load("paper")
    assert experiment.judge.remote
    assert experiment.calls.key is None
    assert "127.0.0.1" in experiment.judge.parameters["base_url"]
    assert "gpt" not in experiment.judge.parameters["model_name"]


def directory(folder, text):
    (folder / "mine").mkdir()
    (folder / "mine/configs.yaml").write_text(text)
    return folder / "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {}\nb: {}", "exactly one annotator"),
        ("[a]", "exactly one annotator"),
        ("a: {b: [", "while parsing"),
        ("a: {prompt_template: gone.txt}", "gone.txt, and there is no such file"),
        ("a: {po_dynamics: {encode: json}}", "po_dynamics is"),
        (f"a: {{completions_kwargs: {{base_url: 'http://me:{SECRET}@host'}}}}", "base_url must be an address"),
        (f"a: {{completions_kwargs: {{openai_api_key: {SECRET}}}}}", "keys stand in no file"),
    ],
)
def test_an_unusable_directory_is_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as error:
        find_judge(directory(tmp_path, text))
    assert "\n" not in str(error.value)
    assert SECRET not in str(error.value)


def test_the_number_of_judged_models_is_that_of_the_jobs():
    experiment = load("smoke")
    assert experiment.evaluations == 1 + 4 * 3 + 2 * 3


def test_the_servers_command_is_of_the_papers_judge():
    judge, script = load("paper").judge, (ROOT / "slurm/serve_judge.sh").read_text()
    assert f"${{MODEL:-{judge.parameters['model_name']}}}" in script
    assert f":{re.search('PORT:-([0-9]+)', script)[1]}/v1" in judge.parameters["base_url"]
    assert int(re.search("max-logprobs ([0-9]+)", script)[1]) >= judge.parameters["top_logprobs"]

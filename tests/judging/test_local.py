"""Judges in this process: a causal model's answer tokens, and a reward model's differences."""

import json
import math

import pytest
import torch
from po_dynamics.errors import InputError
from po_dynamics.evaluation.judge import judge_responses
from po_dynamics.judging import local
from po_dynamics.models import reward_models
from po_dynamics.settings.judging.calls import Calls
from po_dynamics.settings.judging.directory import find_judge
from toy import tiny_folder, tiny_model, tiny_tokenizer

LABELS = ("fox", "owl")  # words of the toy language, a token each
PROMPTS = ["<|im_start|>user\nthe fox is red or blue\n<|im_end|>", "where is the bear", "a", "the sea and the forest"]


@pytest.fixture
def model(tmp_path):
    return str(tiny_folder(tmp_path / "model", max_length=24))


def test_log_probs_are_those_of_the_whole_vocabulary_one_prompt_at_a_time(model):
    found = local.hf_completions(PROMPTS, model, LABELS, batch_size=3)
    tokenizer, network = tiny_tokenizer(), tiny_model(max_length=24)
    for prompt, choice, word in zip(PROMPTS, found["completions_all"], found["completions"], strict=True):
        text = prompt.replace("<|im_start|>user\n", "").replace("\n<|im_end|>", "")
        ids = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)[
            "input_ids"
        ]
        with torch.no_grad():
            logps = network(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        expected = [logps[tokenizer.convert_tokens_to_ids(label)].item() for label in LABELS]
        top = choice["logprobs"]["content"][0]["top_logprobs"]
        assert [entry["token"] for entry in top] == list(LABELS)
        assert [entry["logprob"] for entry in top] == pytest.approx(expected, abs=1e-5)
        assert word == LABELS[expected.index(max(expected))]


def test_a_prompt_beyond_the_context_costs_itself(model, capfd):
    found = local.hf_completions([PROMPTS[1], "the fox " * 30], model, LABELS)
    assert found["completions"][1] is None
    assert found["completions_all"][1] == {}
    assert found["completions"][0] in LABELS
    assert "1 prompts are longer than 24 tokens" in capfd.readouterr().err


@pytest.mark.parametrize("labels", [("fox", "the bear"), ("fox", "zebra"), ("fox", "fox")])
def test_labels_that_are_no_token_each_are_refused(labels):
    """The toy language has no word for a zebra."""
    with pytest.raises(InputError, match="are not a token each"):
        local.label_ids(tiny_tokenizer(), labels)


def test_a_reward_model_judges_by_its_rewards(tmp_path):
    folder = tiny_folder(tmp_path / "reward", scorer=True)
    rows = [("where is the fox", "in the forest", "the sea"), ("what is red", "the fox is red", "the fox is red")]
    prompts = [json.dumps([i, [a, True], [b, True]]) for i, a, b in rows]
    replies = local.reward_completions(prompts, str(folder), temperature=0.5)["completions"]
    scorer = reward_models.load(folder)
    for (instruction, first, second), reply in zip(rows, map(json.loads, replies), strict=True):
        one, two = scorer([[{"role": "user", "content": instruction}]] * 2, [first, second]).tolist()
        assert reply["preference"] == pytest.approx(1 + 1 / (1 + math.exp((one - two) / 0.5)), abs=1e-5)
    hard = [json.loads(r)["preference"] for r in local.reward_completions(prompts, str(folder), 0)["completions"]]
    assert hard[0] in (1, 2)
    assert hard[1] == 1.5


def test_both_judge_through_the_whole_package(tmp_path, model):
    """Swapped orders of the reward judge agree exactly; the verdicts of both are probabilities."""
    import pandas as pd

    answers = {
        "candidate": ["the fox", "a bear eats fish", "sea"],
        "baseline": ["the owl", "a fox eats berries", "sea"],
    }
    for name, texts in answers.items():
        about = {"step": 0, "id": ["a", "b", "c"], "instruction": ["what", "where", "the owl"], "ended": True}
        pd.DataFrame({**about, "response": texts}).to_parquet(tmp_path / f"{name}.parquet")
    paths = [tmp_path / f"{name}.parquet" for name in ("candidate", "baseline", "annotations")]
    reward = str(tiny_folder(tmp_path / "reward", scorer=True))
    found = judge_responses(*paths, "reward", Calls(model=reward))
    assert found["preference"].to_numpy() == pytest.approx(found["preference_swapped"].to_numpy(), abs=1e-6)
    assert found["preference"][2] == 0.5
    assert found["preference"].between(0, 1, inclusive="neither").all()
    directory = tmp_path / "judges/words"
    directory.mkdir(parents=True)
    text = (find_judge("hf").directory / "configs.yaml").read_text().replace("[m, M]", "[fox, owl]")
    text = text.replace("hf:", "words:").replace("openai/", "words/").replace(": m,", ": fox,")
    (directory / "configs.yaml").write_text(text)
    (directory / "template.txt").write_text("{instruction} fox {output_1} owl {output_2}")
    found = judge_responses(*paths, directory, Calls(model=model))
    assert found["preference"][:2].between(0, 1, inclusive="neither").all()
    assert not list(tmp_path.glob("*.jsonl"))


def test_a_model_that_is_not_there_is_found_before_training(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    judge = find_judge("hf", Calls(model=str(tmp_path / "gone")))
    with pytest.raises(InputError, match=r"judge model .*gone: no such folder"):
        local.check(judge, Calls(), "")
    judge = find_judge("hf", Calls(model=str(tiny_folder(tmp_path / "model"))))
    with pytest.raises(InputError, match="labels m, M are not a token each"):
        local.check(judge, Calls(), "")
    judge = find_judge("reward", Calls(model=str(tiny_folder(tmp_path / "r", tokenizer=tiny_tokenizer(template=None)))))
    with pytest.raises(InputError, match="no chat template"):
        local.check(judge, Calls(), "")

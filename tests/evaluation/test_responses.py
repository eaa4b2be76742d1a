"""Greedy responses, D′, and the table that the judge reads."""

import pandas as pd
import pytest
import torch
import toy
from po_dynamics.data.tokens.table import read_prompts
from po_dynamics.errors import InputError
from po_dynamics.evaluation import responses as evaluation
from po_dynamics.models.batches import collate, token_logps
from po_dynamics.models.tokenizers import encode_prompt, load_tokenizer
from transformers import GenerationConfig

PROMPTS = [[5, 6, 7], [9], [8, 7, 6, 5, 20, 21], [10, 11], [30]]


def biased(model, bias: float):
    """A model whose EOS logit is shifted, so that some responses end."""
    layer = model.get_output_embeddings()
    layer.bias = torch.nn.Parameter(torch.zeros(layer.out_features, dtype=layer.weight.dtype))
    layer.bias.data[1] = bias
    return model


@pytest.mark.parametrize("architecture", ["gpt_neox", "qwen3", "llama"])
def test_greedy_is_the_argmax_of_full_forward_passes(architecture):
    model, tokenizer = biased(toy.tiny_model(architecture, dtype=torch.float64), 1.0), toy.tiny_tokenizer()
    responses = evaluation.greedy_responses(model, tokenizer, PROMPTS, 12, batch_size=3)
    ended = 0
    for prompt, response in zip(PROMPTS, responses, strict=True):
        for place in range(len(response)):
            logits = model(input_ids=torch.tensor([[*prompt, *response[:place]]])).logits[0, -1]
            assert logits.argmax() == response[place]
        ended += response[-1] == tokenizer.eos_token_id
        assert tokenizer.eos_token_id not in response[:-1]
        assert len(response) == 12 or response[-1] == tokenizer.eos_token_id
    assert 0 < ended < len(PROMPTS)


def test_the_models_own_generation_config_takes_no_part():
    model, tokenizer = toy.tiny_model(dtype=torch.float64), toy.tiny_tokenizer()
    plain = evaluation.greedy_responses(model, tokenizer, PROMPTS, 12)
    hostile = GenerationConfig(do_sample=True, repetition_penalty=9.0, min_new_tokens=9, num_beams=3, max_length=5)
    model.generation_config = hostile
    model.train()
    assert evaluation.greedy_responses(model, tokenizer, PROMPTS, 12) == plain
    assert model.training
    assert model.generation_config is hostile


def test_stops_when_all_have_ended(monkeypatch):
    model, calls = biased(toy.tiny_model(), 1e3), []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **inputs: calls.append(1) or forward(**inputs))
    assert evaluation.greedy_responses(model, toy.tiny_tokenizer(), PROMPTS, 12) == [[1]] * 5
    assert len(calls) == 1


def test_long_prompts_make_smaller_batches(monkeypatch):
    monkeypatch.setattr(evaluation, "BATCH_TOKENS", 40)
    assert evaluation.fitting_rows([[5] * 12, [5]], 8, 64) == 2  # 20 tokens each
    assert evaluation.fitting_rows([[5] * 12, [5]], 8, 1) == 1
    assert evaluation.fitting_rows([[5] * 100], 8, 64) == 1
    model, sizes = biased(toy.tiny_model(), -1e3), []
    decode = evaluation.greedy
    monkeypatch.setattr(
        evaluation, "greedy", lambda m, batch, *rest: sizes.append(len(batch)) or decode(m, batch, *rest)
    )
    evaluation.greedy_responses(model, toy.tiny_tokenizer(), [[5] * 12, *([[6]] * 4)], 8)
    assert sizes == [2, 2, 1]


def test_room_in_the_context():
    model, tokenizer = toy.tiny_model(max_length=16), toy.tiny_tokenizer()
    responses = evaluation.greedy_responses(biased(model, -1e3), tokenizer, [[5] * 12, [6] * 2], 8, batch_size=1)
    assert [len(response) for response in responses] == [4, 8]
    with pytest.raises(InputError, match="a prompt has 16 tokens and the model's context is 16"):
        evaluation.greedy_responses(model, tokenizer, [[5] * 16], 8)
    with pytest.raises(InputError, match="no prompt"):
        evaluation.greedy_responses(model, tokenizer, [], 8)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1], True),  # EOS at once
        ([], True),
        ([5, 1], False),
        ([5] * 20, True),
        ([5, 6, 7, 8, 9] * 3 + [1], True),
        ([5, 6, 7, 8, 9] * 2 + [1], False),  # a sentence said twice
        (list(range(5, 40)), False),
    ],
)
def test_degenerate(ids, expected):
    assert evaluation.is_degenerate(ids, eos=1) is expected


def test_kl_estimates_the_kl_of_responses():
    """Against the exact KL of whole responses, by enumeration over a vocabulary of a few tokens."""
    tokenizer = toy.tiny_tokenizer()
    policy, reference = (toy.tiny_model(vocab=6, seed=seed) for seed in (0, 1))
    exact, prompt = 0.0, [3, 4]
    for first in range(6):
        for second in range(6 if first != 1 else 1):
            response = [1] if first == 1 else [first, second]
            batch = collate([prompt], [response], 2)
            p, q = (token_logps(model, batch).sum().item() for model in (policy, reference))
            exact += torch.tensor(p).exp().item() * (p - q)
    with torch.no_grad():
        kl = evaluation.kl_to_reference(policy, reference, tokenizer, [prompt] * 2000, 2, seed=0, batch_size=512)
    error = kl.std().item() / 2000**0.5
    assert kl.mean().item() == pytest.approx(exact, abs=4 * error)
    assert error < 0.05 * exact
    assert evaluation.kl_to_reference(policy, policy, tokenizer, [prompt] * 4, 2, seed=0).abs().max() == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    toy.tiny_folder(folder / "sft")
    toy.tiny_folder(folder / "step-5", seed=5)
    toy.write_tokens(toy.write_prompts(folder / "prompts.parquet", 12), folder / "sft", "final_prompts")
    return folder


def test_final_responses(run, tmp_path, capsys):
    arguments = (run / "step-5", run / "prompts.arrow", tmp_path / "d.parquet", {"max_new_tokens": 9})
    evaluation.final_responses(*arguments, n=8, seed=3)
    table = pd.read_parquet(tmp_path / "d.parquet")
    assert table.columns.tolist() == ["id", "prompt_ids", "response_ids", "response"]
    assert len(set(table["id"])) == 8
    tokenizer, prompts = load_tokenizer(run / "step-5"), pd.read_parquet(run / "prompts.parquet")
    by_id = dict(zip(prompts["id"], prompts["prompt"], strict=True))
    for row in table.itertuples():
        assert list(row.prompt_ids) == encode_prompt(tokenizer, list(by_id[row.id]))
        assert tokenizer.decode(row.response_ids, skip_special_tokens=True) == row.response
    unended = sum(ids[-1] != 1 for ids in table["response_ids"])
    line = f"8 of 8 prompts answered; 0 too long to draw from; 0 responses empty, {unended} cut"
    assert line in capsys.readouterr().err
    first = (tmp_path / "d.parquet").read_bytes()
    evaluation.final_responses(*arguments, n=8, seed=3)
    assert (tmp_path / "d.parquet").read_bytes() == first
    evaluation.final_responses(*arguments, n=8, seed=4)
    assert pd.read_parquet(tmp_path / "d.parquet")["id"].tolist() != table["id"].tolist()


def test_final_responses_answer_each_prompt_once(run, tmp_path, capsys):
    """Preferences hold a prompt in several rows; as often as that it must not count in D′."""
    table = pd.read_parquet(run / "prompts.parquet")
    table["prompt"] = [table["prompt"][i // 3] for i in range(12)]  # p0, p3, p6, p9 are the first of their prompts
    table.to_parquet(tmp_path / "prompts.parquet")
    toy.write_tokens(tmp_path / "prompts.parquet", run / "sft", "final_prompts")
    arguments = run / "step-5", tmp_path / "prompts.arrow", tmp_path / "d.parquet", {"max_new_tokens": 9}
    evaluation.final_responses(*arguments, n=12, seed=0)
    answered = pd.read_parquet(tmp_path / "d.parquet")
    assert set(answered["id"]) == set(table["id"][::3])
    assert len(answered) == answered["prompt_ids"].map(tuple).nunique() == 4
    assert "4 of 12 prompts answered" in capsys.readouterr().err


def test_final_responses_count_what_they_leave_out(run, tmp_path, capsys):
    arguments = run / "step-5", run / "prompts.arrow", tmp_path / "d.parquet"
    lengths = [len(prompt.ids) for prompt in read_prompts(arguments[1])]
    evaluation.final_responses(*arguments, {"max_new_tokens": 128 - 6}, n=50, seed=0)
    long = sum(length > 6 for length in lengths)
    assert 0 < long < 12
    assert f"{12 - long} of 50 prompts answered; {long} too long" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"none of 12 prompts has at most 1 tokens: lower evaluation\.max_new_tokens"):
        evaluation.final_responses(*arguments, {"max_new_tokens": 127}, n=50, seed=0)


def test_final_responses_that_are_all_empty(run, tmp_path):
    model = toy.tiny_model("llama")
    model.lm_head.weight.data[:] = 0.0
    model.lm_head.weight.data[1] = 1.0
    norm = model.model.norm.weight.data
    norm[:] = 0.0  # all logits are equal: the first token wins
    tokenizer = toy.tiny_tokenizer()
    model.save_pretrained(tmp_path / "step-1")
    tokenizer.save_pretrained(tmp_path / "step-1")
    arguments = tmp_path / "step-1", run / "prompts.arrow", tmp_path / "d.parquet", {"max_new_tokens": 4}
    evaluation.final_responses(*arguments, n=3, seed=0)
    assert pd.read_parquet(tmp_path / "d.parquet")["response_ids"].map(list).tolist() == [[0] * 4] * 3
    (tmp_path / "d.parquet").unlink()
    config = tmp_path / "step-1/tokenizer_config.json"
    config.write_text(config.read_text().replace('"<eos>"', '"<unk>"'))
    with pytest.raises(InputError, match="every final response is empty"):
        evaluation.final_responses(*arguments, n=3, seed=0)
    assert not (tmp_path / "d.parquet").exists()


def test_evaluation_table(run, tmp_path):
    checkpoints = {0: run / "sft", 5: run / "step-5"}
    arguments = checkpoints, run / "sft", "toy:words", run / "prompts.arrow", tmp_path / "r.parquet"
    evaluation.evaluate_responses(*arguments, {"max_new_tokens": 9})
    table = pd.read_parquet(tmp_path / "r.parquet")
    columns = ["step", "id", "instruction", "response", "n_tokens", "ended", "kl", "reward", "degenerate"]
    assert table.columns.tolist() == columns
    assert table.groupby("step").size().to_dict() == {0: 12, 5: 12}
    prompts = pd.read_parquet(run / "prompts.parquet")
    assert table["instruction"][:12].tolist() == [prompt[0]["content"] for prompt in prompts["prompt"]]
    assert (table["kl"][:12] == 0).all()
    assert (table["kl"][12:] > 0).all()
    assert table["reward"].tolist() == [float(len(text.split())) for text in table["response"]]
    assert (table["n_tokens"] == table["response"].map(lambda text: len(text.split())) + table["ended"]).all()
    first = (tmp_path / "r.parquet").read_bytes()
    evaluation.evaluate_responses(*arguments, {"max_new_tokens": 9})
    assert (tmp_path / "r.parquet").read_bytes() == first


def test_evaluation_of_a_base_model_and_without_reward(run, tmp_path):
    toy.tiny_folder(tmp_path / "base", tokenizer=toy.tiny_tokenizer(pad=None, template=None), vocab=37)
    arguments = {0: tmp_path / "base"}, tmp_path / "base", None, run / "prompts.arrow", tmp_path / "r.parquet"
    evaluation.evaluate_responses(*arguments, {"max_new_tokens": 5})
    assert pd.read_parquet(tmp_path / "r.parquet")["reward"].isna().all()

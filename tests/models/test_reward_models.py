"""Reward sources: pooling, normalisation, tokenizers, ArmoRM against its published formula, functions."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import tiny_ppo
import torch
from po_dynamics.errors import InputError
from po_dynamics.models import reward_models
from po_dynamics.models.armorm import ArmoRM, gate_position
from po_dynamics.models.batches import collate
from po_dynamics.models.critic import Critic, final_values, token_values
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

PROMPTS = [[{"role": "user", "content": text}] for text in ("the fox", "owl", "a big bear")]
RESPONSES = ["is red", "blue", "likes fish and berries"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_ppo.write_world(tmp_path_factory.mktemp("world"))


def encoded() -> tuple[list[list[int]], list[list[int]]]:
    words = tiny_ppo.tokenizer()
    prompts = [words.apply_chat_template(p, add_generation_prompt=True, return_dict=False) for p in PROMPTS]
    return prompts, [[*words(r, add_special_tokens=False)["input_ids"], 2] for r in RESPONSES]


def test_trained_reward_model_is_pooled_at_eos_and_normalised(world: dict[str, Path]) -> None:
    prompt_ids, response_ids = encoded()
    found = reward_models.load(world["reward"], tiny_ppo.tokenizer(), 2)(PROMPTS, RESPONSES, prompt_ids, response_ids)
    model = AutoModelForSequenceClassification.from_pretrained(world["reward"])
    for row, (prompt, response) in enumerate(zip(prompt_ids, response_ids, strict=True)):
        hidden = model.gpt_neox(torch.tensor([[*prompt, *response]])).last_hidden_state[0, -1]
        expected = (float(model.score(hidden.detach()).detach()) - 0.4) / 1.7
        assert float(found[row]) == pytest.approx(expected, abs=1e-5)


def test_text_and_ids_give_the_same_score(world: dict[str, Path]) -> None:
    scorer = reward_models.load(world["reward"], tiny_ppo.tokenizer())
    torch.testing.assert_close(scorer(PROMPTS, RESPONSES), scorer(PROMPTS, RESPONSES, *encoded()))
    unshared = reward_models.load(world["reward"])  # no policy tokenizer: ids mean nothing to it
    torch.testing.assert_close(unshared(PROMPTS, RESPONSES, [[9]] * 3, [[9]] * 3), scorer(PROMPTS, RESPONSES))


def test_a_pad_token_inside_a_response_is_read(world: dict[str, Path]) -> None:
    """Lengths are explicit: ids equal to the pad token neither end a response nor leave the attention."""
    scorer = reward_models.load(world["reward"], tiny_ppo.tokenizer())
    prompt_ids, _ = encoded()
    texts = [""] * 3
    plain, padded = (scorer(PROMPTS, texts, prompt_ids, [[7, token, 9]] * 3) for token in (8, 1))
    ends = scorer(PROMPTS, texts, prompt_ids, [[7, 9, 1]] * 3)
    assert ((plain - padded).abs() > 1e-4).all()
    assert ((ends - scorer(PROMPTS, texts, prompt_ids, [[7, 9]] * 3)).abs() > 1e-4).all()


def test_foreign_reward_model_uses_its_own_tokenizer_and_template(tmp_path: Path) -> None:
    """As Skywork's: a Llama classifier with another vocabulary, another template, and no pad token in its config."""
    words = tiny_ppo.tokenizer()
    words.chat_template = "{% for m in messages %}{{ m['content'] }} <user> {% endfor %}"
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = LlamaForSequenceClassification(LlamaConfig(vocab_size=26, num_labels=1, initializer_range=0.3, **sizes))
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    found = reward_models.load(tmp_path, tiny_ppo.tokenizer(), 2)(PROMPTS, RESPONSES, *encoded())
    for row in range(3):
        text = f"{PROMPTS[row][0]['content']} <user> {RESPONSES[row]} <user> "
        ids = torch.tensor([words(text, add_special_tokens=False)["input_ids"]])
        assert float(found[row]) == pytest.approx(float(model(ids).logits), abs=1e-5)


def test_critic_starts_at_the_normalised_score(world: dict[str, Path], tmp_path: Path) -> None:
    critic = Critic.from_pretrained(world["reward"])
    batch = collate(*encoded(), 1)
    scores = reward_models.load(world["reward"], tiny_ppo.tokenizer())(PROMPTS, RESPONSES, *encoded())
    torch.testing.assert_close(final_values(critic, batch), scores)
    critic.model.save_pretrained(tmp_path)
    again = Critic.from_pretrained(tmp_path)
    values = [token_values(c, batch) for c in (critic, again)]
    assert torch.equal(*values)
    assert (values[0][~batch.loss_mask_BT] == 0).all()


def reference_score(model: ArmoRM, ids: list[int]) -> float:
    """The published formula for one unpadded conversation, in plain loops."""
    weights = {name: value.double() for name, value in model.state_dict().items()}
    hidden = model.model(torch.tensor([ids])).last_hidden_state[0].double()
    gate = max(i for i, token in enumerate(ids) if token == 4)
    state = hidden[gate]
    for layer in range(3):
        state = weights[f"gating.layers.{layer}.weight"] @ state + weights[f"gating.layers.{layer}.bias"]
        if layer < 2:
            state = torch.where(state > 0, state, 0)
    exponentials = [math.exp(float(x) / 3.0) for x in state]
    rewards = weights["regression_layer.weight"] @ hidden[-1]
    total = 0.0
    for k in range(5):
        adjusted = sum(float(rewards[j]) * float(weights["reward_transform_matrix"][j, k]) for j in range(5))
        total += 1.3 * exponentials[k] / sum(exponentials) * adjusted
    return total


def test_armorm_is_the_published_formula(tmp_path: Path) -> None:
    model = tiny_ppo.armorm(tmp_path)
    found = reward_models.load(tmp_path, batch_size=3)(PROMPTS, RESPONSES)
    words = tiny_ppo.tokenizer()
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        conversation = [*prompt, {"role": "assistant", "content": response}]
        ids = words.apply_chat_template(conversation, return_dict=False)
        assert float(found[row]) == pytest.approx(reference_score(model, ids), abs=1e-5)
    assert float(found.std()) > 0.01


def test_an_incomplete_armorm_is_refused(tmp_path: Path) -> None:
    tiny_ppo.armorm(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["gating.layers.1.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"1 weights are missing, such as gating\.layers\.1\.weight"):
        reward_models.load(tmp_path)


def test_armorm_gate_is_the_last_opening_of_the_assistants_turn() -> None:
    assert gate_position([1, 5, 6, 2, 5, 6, 3], [5, 6]) == 4
    with pytest.raises(InputError, match="open the assistant's turn"):
        gate_position([1, 2, 3], [5, 6])


def test_functions(tmp_path: Path) -> None:
    scorer = reward_models.load("toy:reward_by_length")
    assert scorer(PROMPTS, RESPONSES).tolist() == [-2.0, -1.0, -4.0]
    assert scorer(PROMPTS, RESPONSES).dtype == torch.float32
    for source in ("toy:no_such", "no_such_module:f", "toy:WORDS"):
        with pytest.raises(InputError, match=source):
            reward_models.load(source)
    with pytest.raises(InputError, match="no such folder"):
        reward_models.load(tmp_path / "nothing")
    with pytest.raises(InputError, match="2 scores for 3 responses"):
        reward_models.FunctionScorer(lambda prompts, responses: [1.0, 2.0], "f")(PROMPTS, RESPONSES)


def test_incomplete_reward_models_are_refused(world: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1 weights are missing, such as score\.weight"):
        reward_models.load(world["policy"])  # a language model has no head: never a random one
    tokenizer = tiny_ppo.tokenizer()
    tokenizer.chat_template = None
    AutoModelForSequenceClassification.from_pretrained(world["reward"]).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no chat template"):
        reward_models.load(tmp_path)

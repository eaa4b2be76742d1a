"""Sampling: the law, independence of padding and batching, hostile defaults, the two engines against each other."""

from __future__ import annotations

import sys

import pytest
import tiny_ppo
import torch
from po_dynamics.errors import InputError
from po_dynamics.models.batches import collate, token_logps
from po_dynamics.models.sampling import CachedRollout, GenerateRollout, Sampling, draw, mix, row_uniforms
from po_dynamics.models.vllm import VLLMRollout
from transformers import GenerationConfig

SAMPLING = Sampling(max_new_tokens=12, eos_ids=(2,), pad_id=1)
PROMPTS = [[0, 3, 7, 4], [0, 3, 9, 10, 11, 12, 4], [5], [0, 3, 4], [0, 3, 9, 9, 4]]


def test_draw_follows_the_softmax_at_the_temperature() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    n = 100_000
    uniforms = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens, law, entropies = draw(logits.expand(n, -1), uniforms, 0.7, 1.0)
    probs = (logits / 0.7).softmax(-1)
    counts = torch.bincount(tokens, minlength=4) / n
    assert (counts - probs).abs().max() < 5e-3
    torch.testing.assert_close(law.float(), probs.log()[tokens])
    torch.testing.assert_close(entropies, torch.distributions.Categorical(probs).entropy().expand(n))


@pytest.mark.parametrize(("top_p", "kept"), [(0.5, {3}), (0.7, {3, 0}), (0.9, {3, 0, 1}), (0.99, {3, 0, 1, 2})])
def test_top_p_keeps_the_smallest_sufficient_set(top_p: float, kept: set[int]) -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])  # 0.24, 0.09, 0.03, 0.64
    uniforms = torch.linspace(0, 1, 4001, dtype=torch.float64)[:-1]
    tokens, law, _ = draw(logits.expand(4000, -1), uniforms, 1.0, top_p)
    assert set(tokens.tolist()) == kept
    mass = logits.softmax(-1)[list(kept)].sum()
    torch.testing.assert_close(law.float(), logits.softmax(-1).div(mass).log()[tokens])


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    model = tiny_ppo.policy()
    uniforms = row_uniforms(len(PROMPTS), SAMPLING, (0, 1))
    together = CachedRollout(model, SAMPLING, 8)(PROMPTS, uniforms)
    batched = CachedRollout(model, SAMPLING, 2)(PROMPTS, uniforms)
    for row, prompt in enumerate(PROMPTS):
        alone = CachedRollout(model, SAMPLING, 1)([prompt], uniforms[row : row + 1])[0]
        assert together[row].ids == batched[row].ids == alone.ids
        assert together[row].logps == pytest.approx(alone.logps, abs=1e-5)
    assert len({tuple(response.ids) for response in together}) > 1


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_generate_and_the_cached_loop_agree_under_hostile_defaults(top_p: float) -> None:
    model, sampling = tiny_ppo.policy(), SAMPLING._replace(top_p=top_p, temperature=0.8)
    model.generation_config = GenerationConfig(
        repetition_penalty=1.9, min_p=0.4, no_repeat_ngram_size=1, top_k=2, do_sample=True, eos_token_id=8, num_beams=3
    )
    own = model.generation_config
    uniforms = row_uniforms(len(PROMPTS), sampling, (3,))
    cached = CachedRollout(model, sampling, 2)(PROMPTS, uniforms)
    generated = GenerateRollout(model, sampling, 3)(PROMPTS, uniforms)
    for one, other in zip(cached, generated, strict=True):
        assert (one.ids, one.ended) == (other.ids, other.ended)
        assert one.logps == pytest.approx(other.logps, abs=1e-5)
        assert one.entropy == pytest.approx(other.entropy, abs=1e-4)
    assert model.generation_config is own


@pytest.mark.parametrize("build", [tiny_ppo.policy, tiny_ppo.llama])
def test_sampled_logps_are_those_of_the_update(build: object) -> None:
    """Left padding and positions are right: the cached log-probs are those of an unpadded forward pass."""
    model = build()  # type: ignore[operator]
    sampling = SAMPLING._replace(temperature=0.7)
    responses = CachedRollout(model, sampling, 8)(PROMPTS, row_uniforms(len(PROMPTS), sampling, (0,)))
    batch = collate(PROMPTS, [response.ids for response in responses], 1)
    with torch.no_grad():
        logps = token_logps(model, batch, 0.7)
    for row, response in enumerate(responses):
        torch.testing.assert_close(
            logps[row][batch.loss_mask_BT[row]], torch.tensor(response.logps, dtype=torch.float32), atol=1e-5, rtol=1e-5
        )


def test_responses_stop_at_eos_and_at_the_limit() -> None:
    model = tiny_ppo.policy()
    uniforms = row_uniforms(40, SAMPLING, (5,))
    responses = CachedRollout(model, SAMPLING, 16)([PROMPTS[0]] * 40, uniforms)
    assert {response.ended for response in responses} == {True, False}
    for response in responses:
        assert response.ended == (response.ids[-1] == 2)
        assert 2 not in response.ids[:-1]
        assert response.ended or len(response.ids) == 12


def test_stops_when_every_row_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_ppo.policy()
    with torch.no_grad():
        model.lm_head.weight.zero_()  # a uniform law: token 2 is drawn by u in [2/26, 3/26)
    uniforms = torch.full((3, 12), 2.5 / 26, dtype=torch.float64)
    uniforms[0, :2] = 0.9
    calls = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *a, **k: (calls.append(1), forward(*a, **k))[1])
    responses = CachedRollout(model, SAMPLING, 8)(PROMPTS[:3], uniforms)
    assert [len(response.ids) for response in responses] == [3, 1, 1]
    assert len(calls) == 3


def test_seeds_differ_and_repeat() -> None:
    one, same, other = (row_uniforms(4, SAMPLING, seeds) for seeds in ((0, 1), (0, 1), (1, 0)))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert len({mix(a, b) for a in range(50) for b in range(50)}) == 2500


def test_the_training_mode_is_restored() -> None:
    model = tiny_ppo.policy().train()
    CachedRollout(model, SAMPLING, 8)(PROMPTS, row_uniforms(len(PROMPTS), SAMPLING, (0,)))
    assert model.training


def test_bad_prompts_are_refused() -> None:
    model = tiny_ppo.policy()
    engine = CachedRollout(model, SAMPLING, 8)
    with pytest.raises(InputError, match="context of 64"):
        engine([[3] * 60], torch.zeros(1, 12))
    with pytest.raises(InputError, match="empty"):
        engine([[]], torch.zeros(1, 12))


def test_vllm_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if it were not installed
    with pytest.raises(InputError, match="vllm is not installed"):
        VLLMRollout(lambda folder: None, SAMPLING)

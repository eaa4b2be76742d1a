"""Policies that answer: how far they are from a reference."""

import pytest
import torch
import toy
from po_dynamics.evaluation.policies import divergence
from po_dynamics.models.batches import collate


def test_divergence_is_the_sum_of_exact_token_kls_and_log_probs():
    tokenizer = toy.tiny_tokenizer()
    policy, reference = (toy.tiny_model(seed=seed, dtype=torch.float64) for seed in (0, 1))
    prompts, responses = [[5, 6], [7, 8, 9]], [[10, 11, 1], [12]]
    found = divergence(policy, reference, collate(prompts, responses, tokenizer.pad_token_id))
    for row in range(2):
        ids = torch.tensor([prompts[row] + responses[row]])
        p, q = (model(input_ids=ids).logits[0].log_softmax(-1) for model in (policy, reference))
        places = range(len(prompts[row]) - 1, ids.shape[1] - 1)
        expected = sum(torch.nn.functional.kl_div(q[t], p[t], reduction="sum", log_target=True) for t in places)
        assert found.kl_B[row].item() == pytest.approx(expected.item(), rel=1e-5)
        for logps, model in ((found.logps_B, p), (found.ref_logps_B, q)):
            of_tokens = model[list(places), responses[row]].sum()
            assert logps[row].item() == pytest.approx(of_tokens.item(), rel=1e-5)

"""G again, from a checkpoint, `samples.parquet`, the stored advantages and the paper's formulas alone.

    python tests/helpers/recompute.py CHECKPOINT REFERENCE PROBE_FOLDER BETA

It shares no code with the package: one forward and backward per response of the plain Hugging Face model.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForCausalLM


def log_probs(model, prompt, response):
    """log π(y_t | y_<t, x) of the response's tokens."""
    ids = torch.tensor([[*prompt, *response]])
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    return logits.log_softmax(-1)[torch.arange(len(ids[0]) - 1), ids[0, 1:]][len(prompt) - 1 :]


def gradient(model, value):
    model.zero_grad()
    value.backward()
    return torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in model.parameters()])


def alignment(checkpoint, reference, folder, beta=0.1, temperature=1.0):
    """G of the six components of DPO (pairs) or PPO (roll-outs)."""
    model, base = (AutoModelForCausalLM.from_pretrained(p, dtype=torch.float64) for p in (checkpoint, reference))
    samples = pd.read_parquet(Path(folder) / "samples.parquet")
    final, train = samples[samples["set"] == "final"], samples[samples["set"] == "train"]
    v = sum(gradient(model, -log_probs(model, s.prompt_ids, s.response_ids).sum()) for s in final.itertuples())
    v = (v / len(final)).double()
    if "rollout" in set(train["role"]):
        scores = pd.read_parquet(Path(folder) / "scores.parquet")
        return ppo(model, train, dict(list(scores.groupby("sample_id")["advantage"])), v, temperature)
    return dpo(model, base, train, v, beta)


def dpo(model, base, train, v, beta):
    """Eqs. 5–10: L = −mean ω (log π⁺ − log π⁻)."""
    margins, dots = [], {"chosen": [], "rejected": []}
    for _, pair in train.groupby("sample_id", sort=False):
        delta = {}
        for s in pair.itertuples():
            logp = log_probs(model, s.prompt_ids, s.response_ids).sum()
            with torch.no_grad():
                delta[s.role] = float(logp - log_probs(base, s.prompt_ids, s.response_ids).sum())
            dots[s.role].append(float(gradient(model, logp).double() @ v))
        margins.append(delta["chosen"] - delta["rejected"])
    weight = beta / (1 + np.exp(beta * np.array(margins)))
    parts = {"POS": -weight * dots["chosen"], "NEG": weight * dots["rejected"]}
    return components(parts["POS"] + parts["NEG"], weight, parts)


def ppo(model, train, advantages, v, temperature):
    """Eqs. 11–16 at ratio 1: L = −mean Â log π over tokens."""
    dots, weights = [], []
    for s in train.itertuples():
        ids = torch.tensor([[*s.prompt_ids, *s.response_ids]])
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1] / temperature
        logp = logits.log_softmax(-1)[torch.arange(len(ids[0]) - 1), ids[0, 1:]][len(s.prompt_ids) - 1 :]
        for t, advantage in enumerate(advantages[s.sample_id]):
            grads = torch.autograd.grad(logp[t], list(model.parameters()), retain_graph=True, materialize_grads=True)
            dots.append(-advantage * float(torch.cat([g.flatten() for g in grads]).double() @ v))
            weights.append(advantage)
    dots, weights = np.array(dots), np.array(weights)
    parts = {"POS": np.where(weights >= 0, dots, 0), "NEG": np.where(weights < 0, dots, 0)}
    return components(dots, np.abs(weights), parts)


def components(dots, weight, parts):
    low, high = np.quantile(weight, [1 / 3, 2 / 3])
    # equal weights are compared with the interpolated quantile: a rounding error must not move a tie
    top = weight >= high * (1 - 1e-12)
    parts |= {"TOP": dots * top, "MID": dots * (~top & (weight > low)), "BOT": dots * (~top & (weight <= low))}
    return {"TOT": dots.mean(), **{name: values.mean() for name, values in parts.items()}}


if __name__ == "__main__":
    print(alignment(*sys.argv[1:4], beta=float(sys.argv[4]) if len(sys.argv) > 4 else 0.1))

"""Sampled policies against enumeration: with 38 tokens all 52,060 responses of at most three tokens are known."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
import toy
from po_dynamics.errors import InputError
from po_dynamics.evaluation.distances import distances, log_mean, partition
from po_dynamics.evaluation.target import REFERENCE, Policy, sample_policies
from po_dynamics.models.loading import load_model
from po_dynamics.models.tokenizers import encode_prompt, load_tokenizer

TRAINED, EARLIER = Policy("dpo", 0, 5, True), Policy("dpo", 0, 2, False)
NEW, EOS, TAU = 3, 1, 0.5
SETTINGS = {"prompts": 2, "samples": 400, "proposal_samples": 1500, "max_new_tokens": NEW}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A reference and two policies near it, in whose language EOS is likely; prompts."""
    root, reference = tmp_path_factory.mktemp("target"), toy.tiny_model()
    for name, size in (("sft", 0.0), ("2", 0.5), ("5", 1.0)):
        generator, model = torch.Generator().manual_seed(1), toy.tiny_model()
        for parameter, start in zip(model.parameters(), reference.parameters(), strict=True):
            parameter.data = start + size * 0.2 * torch.randn(start.shape, generator=generator)
        model.save_pretrained(root / name)
        toy.tiny_tokenizer().save_pretrained(root / name)
    toy.write_tokens(toy.write_prompts(root / "prompts.parquet", 5), root / "sft", "eval_prompts")
    return root


def sampled(folders, output, **changes):
    policies = {EARLIER: folders / "2", TRAINED: folders / "5"}
    given = {"reward": "toy:words", "settings": SETTINGS, "seed": 3} | changes
    sample_policies(policies, folders / "sft", prompts=folders / "prompts.arrow", output=output, **given)
    return pd.read_parquet(output)


@pytest.fixture(scope="module")
def samples(folders, tmp_path_factory):
    return sampled(folders, tmp_path_factory.mktemp("samples") / "target.parquet")


def enumerated(folder, prompt_ids):
    """log π of every response of at most `NEW` tokens: all that end before, and all that are cut."""
    model, vocabulary = load_model(folder), 38
    words = [token for token in range(vocabulary) if token != EOS]
    found = {(): 0.0}
    ended = {}
    for length in range(NEW):
        prefixes = list(found)
        with torch.no_grad():
            ids = torch.tensor([[*prompt_ids, *prefix] for prefix in prefixes])
            logps = model(input_ids=ids).logits[:, -1].double().log_softmax(-1).tolist()
        ended |= {(*p, EOS): found[p] + row[EOS] for p, row in zip(prefixes, logps, strict=True)}
        found = {(*p, t): found[p] + row[t] for p, row in zip(prefixes, logps, strict=True) for t in words}
        assert len(found) == len(words) ** (length + 1)
    return ended | found


@pytest.fixture(scope="module")
def exact(folders, samples):
    """By prompt and folder: log Z, KL to π^τ and to π_ref, mean reward; from all responses."""
    tokenizer = load_tokenizer(folders / "sft")
    messages = pd.read_parquet(folders / "prompts.parquet").set_index("id")["prompt"]
    rows = []
    for key in samples["id"].unique():
        prompt_ids = encode_prompt(tokenizer, list(messages[key]))
        laws = {name: enumerated(folders / name, prompt_ids) for name in ("sft", "2", "5")}
        texts = tokenizer.batch_decode([list(r) for r in laws["sft"]], skip_special_tokens=True)
        rewards, ref = np.array(toy.words(None, texts)), np.array(list(laws["sft"].values()))
        log_z = np.log(np.exp(ref + rewards / TAU).sum())
        for name, law in laws.items():
            logps = np.array(list(law.values()))
            p = np.exp(logps)
            assert p.sum() == pytest.approx(1, abs=1e-5)
            kl, reward = (p * (logps - ref)).sum(), (p * rewards).sum()
            to_target = (p * (logps - (ref + rewards / TAU - log_z))).sum()
            rows.append({"id": key, "name": name, "log_z": log_z, "kl": kl, "reward": reward, "to_target": to_target})
    return pd.DataFrame(rows).set_index(["id", "name"])


def test_estimates_agree_with_enumeration(samples, exact):
    log_z = partition(samples, [TAU]).set_index("id")
    for key, name in exact.index:
        row, truth = log_z.loc[key], exact.loc[key, name]
        for estimate, ess in (("log_z", "ess"), ("log_z_jackknife", "ess"), ("log_z_reference", "ess_reference")):
            assert row[estimate] == pytest.approx(truth["log_z"], abs=4 * row[ess] ** -0.5)
        step = {"sft": 0, "2": 2, "5": 5}[name]
        drawn = samples[(samples["id"] == key) & (samples["step"] == step)]
        assert len(drawn) == (400 if step == 2 else 1500)
        for column in ("kl", "reward"):
            error = drawn[column].sem()
            assert drawn[column].mean() == pytest.approx(truth[column], abs=4 * error + 1e-9)
            assert error < 0.1
        log_ratio = drawn["logp"] - drawn["ref_logp"]
        assert log_ratio.mean() == pytest.approx(truth["kl"], abs=4 * log_ratio.sem() + 1e-9)
    found = distances(samples, log_z.reset_index(), {"dpo": TAU}, [], 10).set_index(["run", "step"])
    for (run, step), name in {("sft", 0): "sft", ("dpo", 0): "sft", ("dpo", 2): "2", ("dpo", 5): "5"}.items():
        truth = exact.xs(name, level="name")["to_target"].mean()
        assert found.loc[(run, step), "kl_to_target"] == pytest.approx(truth, abs=0.12)
    assert found["ess"].min() > 100
    assert found.loc["dpo", "own_tau"].all()
    assert not found.loc["sft", "own_tau"].any()
    assert exact["to_target"].max() > 0.5  # far more than the tolerance


def test_the_mixture_is_the_mean_density_of_the_proposals(samples, folders):
    drawn = samples[samples["proposal"]]
    key = drawn["id"].iloc[0]
    messages = pd.read_parquet(folders / "prompts.parquet").set_index("id")["prompt"]
    prompt_ids = encode_prompt(load_tokenizer(folders / "sft"), list(messages[key]))
    laws = [enumerated(folders / name, prompt_ids) for name in ("sft", "5")]
    for row in drawn[drawn["id"] == key].groupby("run").head(20).itertuples():
        expected = np.logaddexp(*(law[tuple(row.response_ids)] for law in laws)) - np.log(2)
        assert row.mixture_logp == pytest.approx(expected, abs=1e-4)
    assert samples[~samples["proposal"]]["mixture_logp"].isna().all()
    assert (samples[samples["run"] == REFERENCE.run]["kl"] == 0).all()


def test_a_policy_has_the_same_samples_beside_others(samples, folders, tmp_path):
    sample_policies(
        {TRAINED: folders / "5"},
        folders / "sft",
        "toy:words",
        folders / "prompts.arrow",
        tmp_path / "alone.parquet",
        SETTINGS,
        seed=3,
    )
    alone = pd.read_parquet(tmp_path / "alone.parquet")
    both = samples[samples["proposal"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, both)
    own = [both[both["run"] == run]["response_ids"].map(tuple).tolist() for run in ("sft", "dpo")]
    assert own[0] != own[1]


def test_a_reward_that_is_not_finite_is_refused(folders, tmp_path):
    small = SETTINGS | {"samples": 1, "proposal_samples": 2}
    with pytest.raises(InputError, match=r"toy:nothing: 10 of 10 sampled responses have a reward that is not finite"):
        sampled(folders, tmp_path / "target.parquet", reward="toy:nothing", settings=small)
    assert not (tmp_path / "target.parquet").exists()


def test_a_single_prompt_is_refused(folders, tmp_path):
    pd.read_parquet(folders / "prompts.parquet").head(1).to_parquet(tmp_path / "one.parquet")
    toy.write_tokens(tmp_path / "one.parquet", folders / "sft", "eval_prompts")
    with pytest.raises(InputError, match=r"one\.arrow: one prompt leaves room for 3 tokens; intervals need two"):
        sample_policies(
            {}, folders / "sft", "toy:words", tmp_path / "one.arrow", tmp_path / "target.parquet", SETTINGS, 0
        )


# -------------------------------------------------------------- enumeration as sampling: dyadic laws, no model at all

TOKENS = {"reference": {"a": 0.25, "b": 0.25, ".": 0.5}, "policy": {"a": 0.5, "b": 0.25, ".": 0.25}}


def law(name):
    """Every response of at most three tokens, "." being EOS, with its probability: multiples of 1/64."""
    whole = ["", "a", "b", *map("".join, itertools.product("ab", repeat=2))]
    found = {prefix + ".": prefix for prefix in whole} | {"".join(r): "" for r in itertools.product("ab", repeat=3)}
    return {text: np.prod([TOKENS[name][token] for token in text]) for text in found}


def test_every_response_as_often_as_it_is_likely_gives_the_exact_numbers():
    reference, policy = law("reference"), law("policy")
    reward = {text: 1.5 * text.count("a") - text.count("b") for text in reference}
    assert sum(reference.values()) == sum(policy.values()) == 1
    z = sum(p * np.exp(reward[text] / TAU) for text, p in reference.items())
    target = {text: p * np.exp(reward[text] / TAU) / z for text, p in reference.items()}
    rows = []
    for run, own in (("sft", reference), ("dpo", policy)):
        for text, p in own.items():
            row = {"run": run, "seed": 0, "step": 0 if run == "sft" else 5, "proposal": True, "reward": reward[text]}
            row |= {"logp": np.log(p), "ref_logp": np.log(reference[text]), "kl": np.log(p / reference[text])}
            row |= {"mixture_logp": np.log((policy[text] + reference[text]) / 2)}
            rows += [row] * round(64 * p)
    samples = pd.concat([pd.DataFrame(rows).assign(id=key) for key in ("one", "two")])
    log_z = partition(samples, [TAU])
    assert log_z["log_z"].to_numpy() == pytest.approx(np.log(z), abs=1e-12)
    assert log_z["log_z_reference"].to_numpy() == pytest.approx(np.log(z), abs=1e-12)
    found = distances(samples, log_z, {"dpo": TAU}, ["dpo"], 10).set_index("run")
    for run, own in (("sft", reference), ("dpo", policy)):
        exact = sum(p * np.log(p / target[text]) for text, p in own.items())
        assert found.loc[run, "kl_to_target"] == pytest.approx(exact, abs=1e-12)
    assert (found["prompts"] == 2).all()
    assert (found["samples"] == 64).all()


def test_log_mean():
    weights = np.array([0.5, 1.0, 2.5, 4.0])
    found = log_mean(np.log(weights) + 700)
    assert found.value == pytest.approx(np.log(2) + 700)
    assert found.ess == pytest.approx(64 / (0.25 + 1 + 6.25 + 16))
    without = [np.log(np.delete(weights, i).mean()) for i in range(4)]
    assert found.jackknife == pytest.approx(4 * np.log(2) - 3 * np.mean(without) + 700)
    equal = log_mean(np.zeros(5))
    assert (equal.value, equal.jackknife, equal.ess) == pytest.approx((0, 0, 5), abs=1e-12)
    one = log_mean(np.array([0.0, -800.0]))
    assert one.ess == pytest.approx(1)
    assert one.jackknife == np.inf


def test_the_jackknife_takes_most_of_the_bias():
    rng = np.random.default_rng(0)
    found = [log_mean(rng.normal(size=30)) for _ in range(3000)]
    bias, rest = (np.mean([estimate[i] for estimate in found]) - 0.5 for i in (0, 1))
    assert bias < -0.02
    assert abs(rest) < 0.5 * abs(bias)

"""The probe: exactness against an independent script, stages, resume, bad input, audits, the callback."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import recompute
import torch
from po_dynamics.dynamics import tables
from po_dynamics.dynamics.alignment import Probe, dynamics
from po_dynamics.dynamics.coefficients import reweight
from po_dynamics.errors import InputError
from po_dynamics.objectives.registry import bind
from po_dynamics.probe import gradients as probe_gradients
from po_dynamics.probe import token_scores
from po_dynamics.probe.numerics import exact_arithmetic
from po_dynamics.probe.offline import probe_offline
from po_dynamics.probe.passes import Options, Sampling, probe, with_reference
from po_dynamics.probe.run import ProbedRun
from po_dynamics.probe.samples import Sample, final_samples, from_frame, pair_samples
from po_dynamics.settings.probe import Probe as ProbeSettings
from po_dynamics.storage import pieces
from po_dynamics.storage.checkpoints import save_step
from probe_samples import FAMILIES, VOCABULARY, final, pairs, rollouts, tiny
from safetensors.torch import load_file, save_file
from toy import tiny_folder, tiny_model, tiny_tokenizer, write_preferences, write_tokens
from transformers import AutoModelForCausalLM

SETTINGS = {
    "samples": {"train": 10, "final": 10},
    "batch_size": {"offline": 3, "online": 4},
    "seed": 0,
    "separate": {"offline": ["POS", "NEG"]},
}


# ------------------------------------------------------------------------------------------------------ the library


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("online", [False, True])
def test_forward_reverse_and_audit_agree_in_float64(family, online):
    model = tiny(family, dtype=torch.float64)
    train = rollouts(9) if online else with_reference(pairs(9), tiny(family, seed=1, dtype=torch.float64))
    separate = ("POS", "NEG", "TOP", "MID", "BOT")
    objective = bind("ppo") if online else bind("dpo", {"beta": 0.1})
    options = Options(separate=separate, audits=99, sampling=Sampling(0.8 if online else 1))
    result = probe(model, train, final(6), objective, options=options)
    assert result.batches["rel_diff"].max() < 1e-10
    whole = result.batches.query("set == 'train' and segment == 'all'")
    assert whole["audit_dot"].notna().all()
    np.testing.assert_allclose(whole["dot"], whole["audit_dot"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("run", ["dpo", "ppo"])
def test_an_independent_script_reproduces_every_component(tmp_path, run):
    model, base = tiny(), tiny(seed=1)
    train = with_reference(pairs(8), base) if run == "dpo" else rollouts(6)
    result = probe(model, train, final(6), bind(run, {"beta": 0.1} if run == "dpo" else {}))
    for name, saved in {"model": model, "base": base}.items():
        saved.save_pretrained(tmp_path / name)
    tables.write(result, tmp_path)
    expected = recompute.alignment(tmp_path / "model", tmp_path / "base", tmp_path)
    table = dynamics(Probe({}, tables.read(tmp_path))).query("segment == 'all' and not filtered")
    largest = max(map(abs, expected.values()))
    assert set(table["component"]) == set(expected)
    for name, g in zip(table["component"], table["G"], strict=True):
        assert abs(g - expected[name]) <= max(1e-4 * abs(expected[name]), 1e-6 * largest)


def test_at_the_reference_every_weight_is_equal():
    model = tiny()
    result = probe(model, with_reference(pairs(11), tiny()), final(5), bind("dpo", {"beta": 0.1}))
    assert (result.scores["weight"] == 0.05).all()
    assert (result.scores["logprob"] == result.scores["ref_logprob"]).all()


def test_mini_batches_and_their_order_do_not_change_scores():
    model = tiny(dtype=torch.float64)
    one, other = pairs(9, batch_size=2), pairs(9, batch_size=9)[::-1]
    results = [
        probe(model, with_reference(s, tiny(seed=1, dtype=torch.float64)), final(5), bind("dpo", {"beta": 0.1}))
        for s in (one, other)
    ]
    keys = ["sample_id", "role", "position"]
    a, b = (result.scores.sort_values(keys).reset_index(drop=True) for result in results)
    np.testing.assert_allclose(a["score"], b["score"], rtol=1e-10)
    np.testing.assert_allclose(a["coefficient"], b["coefficient"], rtol=1e-10)


def test_adamw_alignment_is_the_dot_product_with_the_preconditioned_gradient():
    model = tiny(dtype=torch.float64)
    torch.manual_seed(3)
    scales = {name: torch.rand_like(p) + 0.1 for name, p in model.named_parameters()}
    result = probe(model, rollouts(4, batch_size=4), final(4), bind("ppo", {}), options=Options(scales=scales))
    with exact_arithmetic():
        names = [name for name, _ in model.named_parameters()]
        gradients = []
        for samples, values in ((final(4), None), (rollouts(4), result.scores)):
            total = 0
            for i, s in enumerate(samples):
                logp = recompute.log_probs(model, s.prompt_ids, s.response_ids)
                c = (
                    1 / 4
                    if values is None
                    else torch.from_numpy(values.loc[values["sample_id"] == f"r{i}", "coefficient"].to_numpy(copy=True))
                )
                total = total - (c * logp).sum()
            gradients.append(dict(zip(names, torch.autograd.grad(total, list(model.parameters())), strict=True)))
        expected = sum(float((gradients[0][k] * gradients[1][k] / scales[k]).sum()) for k in names)
    table = dynamics(Probe({}, result)).query("segment == 'all' and not filtered").set_index("component")
    assert table.loc["TOT", "G_adamw"] == pytest.approx(expected, rel=1e-10)


def test_a_small_step_of_gradient_descent_moves_tokens_as_their_drift_says():
    """Δ log π = η · drift, token by token, for D′ along −∇L and for D and D′ along −P⁻¹∇L."""
    model, rate = tiny(dtype=torch.float64), 1e-7
    torch.manual_seed(3)
    scales = {name: torch.rand_like(p) + 0.1 for name, p in model.named_parameters()}
    train = with_reference(pairs(6), tiny(seed=1, dtype=torch.float64))
    objective = bind("dpo", {"beta": 0.1})
    before = probe(model, train, final(4), objective, options=Options(scales=scales, audits=0))
    names = [name for name, _ in model.named_parameters()]
    loss = 0
    for sample in train:
        rows = before.scores.query("sample_id == @sample.sample_id and role == @sample.role")
        logp = recompute.log_probs(model, sample.prompt_ids, sample.response_ids)
        loss = loss - (torch.from_numpy(rows["coefficient"].to_numpy(copy=True)) * logp).sum()
    gradient = dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))
    for column, tables_of in (("drift_TOT", ["drifts"]), ("drift_adamw", ["drifts", "scores"])):
        moved = tiny(dtype=torch.float64)
        with torch.no_grad():
            for name, parameter in moved.named_parameters():
                parameter -= rate * (gradient[name] / scales[name] if column == "drift_adamw" else gradient[name])
        after = probe(moved, train, final(4), objective, options=Options(audits=0))
        for table in tables_of:
            start, end = getattr(before, table), getattr(after, table)
            realised = (end["logprob"] - start["logprob"]) / rate
            np.testing.assert_allclose(realised, start[column], rtol=1e-3, atol=1e-4 * start[column].abs().max())


def test_sides_that_differ_stop_the_run(monkeypatch):
    right = token_scores.score_tokens
    calls = []

    def wrong(*arguments):
        calls.append(arguments)
        scores = right(*arguments)
        return scores._replace(
            scores_KBT=scores.scores_KBT * (1.01 if len(calls) > 2 else 1)
        )  # the first tries the model

    monkeypatch.setattr(token_scores, "score_tokens", wrong)
    with pytest.raises(InputError, match=r"TOT: the scores of D give G = .*, the drifts of D′"):
        probe(tiny(), rollouts(4), final(4), bind("ppo", {}))


def test_norms_of_some_mini_batches_and_scores_of_all():
    train, separate = with_reference(pairs(20, batch_size=2), tiny(seed=1)), ("POS", "NEG", "TOP", "MID", "BOT")
    every, some = (
        probe(
            tiny(), train, final(6), bind("dpo", {"beta": 0.1}), options=Options(separate=separate, norms=n, audits=99)
        )
        for n in (None, 4)
    )
    pd.testing.assert_frame_equal(every.scores, some.scores)
    pd.testing.assert_frame_equal(every.drifts, some.drifts)
    a, b = (
        dynamics(Probe({}, result)).query("not filtered").set_index(["segment", "component"])
        for result in (every, some)
    )
    for column in ("G", "G_low", "G_high", "u_norm"):
        np.testing.assert_array_equal(a.loc["all", column], b.loc["all", column])
    assert a.loc[("all", "TOT"), "grad_norm"] == pytest.approx(b.loc[("all", "TOT"), "grad_norm"], rel=1e-6)
    assert (b.loc["all", "n_batches"] == 10).all()
    measured = some.batches.query("set == 'train' and component == 'POS' and segment == 'all'")
    assert list(measured["batch"]) == [0, 1, 2, 3]
    assert measured["audit_dot"].notna().all()
    assert some.batches.query("set == 'train' and component == 'TOT' and segment == 'all'")["grad_norm"].notna().all()
    of_measured = every.scores["batch"] < 4
    terms = every.scores["coefficient"] * every.scores["score"]
    parts = b.drop(index="all", level="segment").query("component == 'TOT'")["G"].sum()
    assert parts == pytest.approx(-terms[of_measured].sum() * 20 / 8, rel=1e-4)


def test_a_wrong_forward_mode_stops_the_run(monkeypatch):
    right = token_scores.score_tokens

    def wrong(*arguments):
        scores = right(*arguments)
        return scores._replace(scores_KBT=scores.scores_KBT * 1.01)

    monkeypatch.setattr(token_scores, "score_tokens", wrong)
    with pytest.raises(InputError, match=r"mini-batch 0, TOT: forward mode gives"):
        probe(tiny(), rollouts(4), final(4), bind("ppo", {}))


def test_outliers_are_above_the_upper_fence():
    values = pd.Series([1.0, 1.1, 0.9, 1.0, 1.05, 5.0])
    assert probe_gradients.outliers(values).tolist() == [False] * 5 + [True]


def test_samples_survive_their_table():
    samples = [*pairs(3), *final(2)]
    from po_dynamics.probe.samples import samples_frame

    again = from_frame(samples_frame(samples))
    for a, b in zip(samples, again, strict=True):
        assert (a.sample_id, a.set, a.batch, a.role) == (b.sample_id, b.set, b.batch, b.role)
        assert list(a.prompt_ids) == list(b.prompt_ids)
        assert list(a.response_ids) == list(b.response_ids)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (Sample("a", "final", 0, "final", [1, 2], []), "is empty"),
        (Sample("a", "final", 0, "final", [1, 2], [VOCABULARY]), "tokenised for another model"),
        (Sample("a", "final", 0, "final", [1] * 40, [1] * 25), "context 64"),
    ],
)
def test_unusable_samples_are_refused(sample, message):
    with pytest.raises(InputError, match=message):
        probe(tiny(), rollouts(4), [sample], bind("ppo", {}))


def test_pairs_without_reference_log_probs_are_refused():
    with pytest.raises(InputError, match="reference log-probs"):
        probe(tiny(), pairs(4), final(4), bind("dpo", {"beta": 0.1}))


def test_an_objective_of_the_other_family_is_refused():
    with pytest.raises(InputError, match="offline objective"):
        probe(tiny(), rollouts(4), final(4), bind("dpo", {"beta": 0.1}))


# ------------------------------------------------------------------------------------------------------- the stages


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's files: sft/, checkpoints/step-0 and step-2 (with optimizer state), preferences, final responses."""
    root = tmp_path_factory.mktemp("run")
    tiny_folder(root / "sft", seed=0)
    tiny_folder(root / "checkpoints" / "step-0", seed=0)
    tokenizer, model = tiny_tokenizer(), tiny_model(seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(input_ids=torch.tensor([[3, 4, 5]]), labels=torch.tensor([[3, 4, 5]])).loss.backward()
    optimizer.step()
    save_step(model, tokenizer, root / "checkpoints" / "step-2", optimizer=optimizer)
    write_tokens(write_preferences(root / "preferences.parquet", rows=14), root / "sft")
    rows = []
    for i in range(12):
        prompt, response = [3, 7 + i % 5, 8], [9 + i % 4, 10, 11][: 1 + i % 3]
        rows.append(
            {"id": f"q{i}", "prompt_ids": prompt, "response_ids": response, "response": tokenizer.decode(response)}
        )
    pd.DataFrame(rows).to_parquet(root / "final.parquet")
    return root


def offline(root: Path, output: Path, state: Path, **changes):
    arguments = {
        "checkpoints": root / "checkpoints",
        "steps": [0, 2],
        "reference": root / "sft",
        "preferences": root / "preferences.arrow",
        "final_responses": root / "final.parquet",
        "output": output,
        "state": state,
        "objective": bind("dpo", {"beta": 0.1}),
        "settings": SETTINGS,
        "training": {"max_length": 64},
    }
    rewards = changes.pop("rewards", None)
    arguments |= changes
    settings = ProbeSettings.of(arguments["settings"], "probe")
    probe_offline(ProbedRun(**arguments | {"settings": settings}), rewards)


def test_a_run_is_probed_and_repeats_exactly(run, tmp_path):
    for name in ("one", "two"):
        offline(run, tmp_path / name, tmp_path / "state")
    assert not (tmp_path / "state").exists()
    for step in (0, 2):
        files = [tmp_path / name / f"step-{step}" for name in ("one", "two")]
        for table in tables.FILES:
            assert (files[0] / f"{table}.parquet").read_bytes() == (files[1] / f"{table}.parquet").read_bytes()
    first, later = (tables.read(tmp_path / "one" / f"step-{step}") for step in (0, 2))
    assert (first.scores["weight"] == 0.05).all()
    assert first.scores[["score_adamw", "drift_adamw"]].isna().all(axis=None)
    assert later.scores[["score_adamw", "drift_adamw"]].notna().all(axis=None)
    assert later.drifts["drift_adamw"].notna().all()
    assert set(first.samples["role"]) == {"chosen", "rejected", "final"}
    assert first.samples["batch"].max() == 3


def test_an_objective_of_rewards_is_probed_with_them(run, tmp_path):
    """Forward and reverse mode agree, and coefficients can be made again from the table alone."""
    ids = pd.read_parquet(run / "preferences.parquet")["id"]
    rewards = pd.DataFrame({"id": ids, "chosen_reward": np.arange(14) * 0.1, "rejected_reward": 0.5})
    rewards.to_parquet(tmp_path / "rewards.parquet")
    objective = bind("rda_posterior", {"beta": 0.2})
    offline(run, tmp_path / "out", tmp_path / "state", objective=objective, rewards=tmp_path / "rewards.parquet")
    probed = tables.read(tmp_path / "out" / "step-2")
    assert probed.batches["rel_diff"].max() < 1e-3
    scores = probed.scores
    expected = rewards.set_index("id").loc[scores["sample_id"]].reset_index()
    chosen = (scores["role"] == "chosen").to_numpy()
    known = np.where(chosen, expected["chosen_reward"], expected["rejected_reward"])
    np.testing.assert_array_equal(scores["reward"], known)
    np.testing.assert_array_equal(reweight(scores, objective, 2).coefficient, scores["coefficient"])
    sums = scores.assign(delta=scores["logprob"] - scores["ref_logprob"]).groupby(["sample_id", "role"])["delta"].sum()
    gap = 0.2 * (sums.xs("chosen", level="role") - sums.xs("rejected", level="role"))
    difference = rewards.set_index("id")["chosen_reward"].loc[gap.index] - 0.5
    c = -2 * 0.2 * (gap - difference) / len(gap)
    np.testing.assert_allclose(scores["coefficient"], np.where(chosen, 1, -1) * c.loc[scores["sample_id"]], rtol=1e-6)


def test_without_rewards_such_a_probe_says_what_is_missing(run, tmp_path):
    with pytest.raises(InputError, match="pra_posterior needs the rewards of both responses"):
        offline(run, tmp_path / "out", tmp_path / "state", objective=bind("pra_posterior", {"beta": 0.2}))
    offline(run, tmp_path / "out", tmp_path / "state")
    assert "reward" not in tables.read(tmp_path / "out" / "step-0").scores


@pytest.mark.e2e
def test_a_killed_probe_goes_on_where_it_was(run, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces.Pieces.__init__, "__defaults__", (None, "", 0.0))  # writes every piece
    offline(run, tmp_path / "whole", tmp_path / "state")
    measured = []

    def dying(self, mini, whole, audit, right=probe_gradients.Gradients.measure):
        measured.append(mini.batch)
        if len(measured) == 7:  # the second checkpoint's third mini-batch
            raise KeyboardInterrupt
        return right(self, mini, whole, audit)

    monkeypatch.setattr(probe_gradients.Gradients, "measure", dying)
    with pytest.raises(KeyboardInterrupt):
        offline(run, tmp_path / "resumed", tmp_path / "state")
    assert not (tmp_path / "resumed").exists()
    offline(run, tmp_path / "resumed", tmp_path / "state")
    assert measured == [0, 1, 2, 3, 0, 1, 2, 2, 3]
    for step in (0, 2):
        for table in tables.FILES:
            one, other = (tmp_path / name / f"step-{step}" / f"{table}.parquet" for name in ("whole", "resumed"))
            assert one.read_bytes() == other.read_bytes()


def test_state_of_other_settings_is_not_used(run, tmp_path, monkeypatch):
    monkeypatch.setattr(probe_gradients.Gradients, "measure", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        offline(run, tmp_path / "out", tmp_path / "state")
    monkeypatch.undo()
    offline(run, tmp_path / "out", tmp_path / "state", objective=bind("dpo", {"beta": 0.5}))
    assert tables.read(tmp_path / "out" / "step-0").scores["weight"].unique() == [0.25]


def break_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def poison(folder):
    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] = math.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def drop_weights(folder):
    (folder / "model.safetensors").unlink()


def other_vocabulary(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    words["fox"], words["owl"] = words["owl"], words["fox"]
    (folder / "tokenizer.json").write_text(json.dumps(content))


def other_architecture(folder):
    shutil.rmtree(folder)
    tiny_folder(folder, "llama")


def bad_moments(folder):
    save_file({"nothing": torch.zeros(1)}, folder / "exp_avg_sq.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_weights, "truncated or broken"),
        (poison, "not finite"),
        (drop_weights, "has no weights"),
        (other_vocabulary, "tokenizer differs"),
        (other_architecture, "model_type is 'llama'"),
        (bad_moments, "no second moments of"),
    ],
)
def test_unusable_checkpoints_are_refused(run, tmp_path, damage, message):
    shutil.copytree(run, tmp_path / "run")
    damage(tmp_path / "run" / "checkpoints" / "step-2")
    with pytest.raises(InputError, match=message) as error:
        offline(tmp_path / "run", tmp_path / "out", tmp_path / "state", steps=[2])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def change(table, **columns):
    frame = pd.read_parquet(table)
    for name, value in columns.items():
        frame.at[0, name] = value
    frame.to_parquet(table)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"response": "something else"}, "table of another run"),
        ({"response_ids": [1000]}, "table of another run"),
        ({"response_ids": np.array([], dtype=np.int64), "response": ""}, "is empty"),
        ({"response_ids": [9] * 200, "response": tiny_tokenizer().decode([9] * 200)}, "the model's context 128"),
    ],
)
def test_unusable_final_responses_are_refused(run, tmp_path, columns, message):
    shutil.copytree(run, tmp_path / "run")
    change(tmp_path / "run" / "final.parquet", **columns)
    settings = SETTINGS | {"samples": {"train": 10, "final": 14}}
    with pytest.raises(InputError, match=message):
        offline(tmp_path / "run", tmp_path / "out", tmp_path / "state", settings=settings)


def test_other_mistakes_are_named(run, tmp_path):
    with pytest.raises(InputError, match=r"step-7 does not exist .*step-0, step-2"):
        offline(run, tmp_path / "out", tmp_path / "state", steps=[7])
    with pytest.raises(InputError, match="separate is"):
        offline(run, tmp_path / "out", tmp_path / "state", settings=SETTINGS | {"separate": {"offline": ["NEG"]}})


def test_tables_of_different_probes_are_not_mixed(run, tmp_path):
    offline(run, tmp_path / "out", tmp_path / "state")
    shutil.copy(tmp_path / "out" / "step-0" / "batches.parquet", tmp_path / "out" / "step-2" / "batches.parquet")
    with pytest.raises(InputError, match="table of another run"):
        tables.read(tmp_path / "out" / "step-2")


def rewritten(path, columns=None, **metadata):
    """The file with other values and metadata."""
    about, frame = tables.read_metadata(path), pd.read_parquet(path)
    for name, values in (columns or {}).items():
        frame[name] = values(frame[name])
    tables.write_parquet(frame, path, {k: v for k, v in (about | metadata).items() if v is not None})


def test_tables_of_the_older_format_are_refused_with_the_way_out(run, tmp_path):
    offline(run, tmp_path / "out", tmp_path / "state")
    rewritten(tmp_path / "out" / "step-2" / "samples.parquet", format=None)
    with pytest.raises(
        InputError, match=r"samples.parquet has format 1, not 2: .* \(`snakemake --forcerun probe_offline"
    ):
        tables.read(tmp_path / "out" / "step-2")


def test_drifts_of_other_samples_are_refused(run, tmp_path):
    offline(run, tmp_path / "out", tmp_path / "state")
    file = tmp_path / "out" / "step-2" / "scores.parquet"
    rewritten(file, {"drift_TOT": lambda values: values[::-1].to_numpy() * 1.5})
    with pytest.raises(InputError, match="they are of other samples; probe this checkpoint again"):
        dynamics(Probe({}, tables.read(file.parent)))


def test_the_example_of_the_documentation(run, monkeypatch):
    """docs/probe.md: the block runs as it stands, in a folder with the files it names."""
    text = (Path(__file__).parents[2] / "docs" / "probe.md").read_text(encoding="utf-8")
    code = text.split("<!-- example -->\n```python\n")[1].split("```")[0]
    monkeypatch.chdir(run)
    scope: dict = {}
    exec(code, scope)
    assert set(scope["table"]["component"]) == {"TOT", "POS", "NEG", "TOP", "MID", "BOT"}


def test_the_callback_logs_and_changes_nothing(run, tmp_path):
    from po_dynamics.probe.callback import ProbeCallback
    from transformers import Trainer, TrainingArguments

    def train(probed: bool):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(run / "sft")
        rows = [{"input_ids": [3, 4, 5 + i % 4], "labels": [3, 4, 5 + i % 4]} for i in range(8)]
        arguments = TrainingArguments(
            str(tmp_path / "trainer"), max_steps=4, per_device_train_batch_size=2, report_to=[], logging_steps=100,
            learning_rate=1e-2, save_strategy="no", use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=rows)
        if probed:
            d = pair_samples([], 2) + [
                Sample(str(i), "train", i // 2, role, [3, 4], [5 + i, 6, len(role)], np.full(3, -2.0))
                for i in range(4)
                for role in ("chosen", "rejected")
            ]
            final_ = final_samples([([3, 4], [7, 8]), ([3], [9])], 2)
            trainer.add_callback(ProbeCallback(trainer, d, final_, bind("dpo", {"beta": 0.1}), every=2))
        trainer.train()
        return trainer

    with_probe, without = train(True), train(False)
    logged = [entry for entry in with_probe.state.log_history if "probe/TOT/G" in entry]
    assert [entry["step"] for entry in logged] == [0, 2, 4]
    for entry in logged:
        assert entry["probe/TOT/G"] == pytest.approx(entry["probe/POS/G"] + entry["probe/NEG/G"])
    for a, b in zip(with_probe.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(a, b)

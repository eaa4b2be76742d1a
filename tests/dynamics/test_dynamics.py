"""Dynamics: identities, intervals, re-slicing, observables, prediction; on probes of tiny models."""

import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from po_dynamics.dynamics import __main__ as reslice
from po_dynamics.dynamics import alignment as d
from po_dynamics.dynamics import segments, stored, tables
from po_dynamics.dynamics.observables import distributions, logps
from po_dynamics.errors import InputError
from po_dynamics.objectives.registry import bind
from po_dynamics.probe.passes import Options, probe, with_reference
from probe_samples import final, pairs, rollouts, tiny

ALL_SEPARATE = ("POS", "NEG", "TOP", "MID", "BOT")


def keys(run="dpo", step=0):
    return {"model": "m", "run": run, "seed": 0, "step": step, "final_set": "heldout"}


@pytest.fixture(scope="module")
def dpo():
    train = with_reference(pairs(42, batch_size=2), tiny(seed=1))
    options = Options(separate=ALL_SEPARATE, audits=0)
    return d.Probe(keys(), probe(tiny(), train, final(9), bind("dpo", {"beta": 0.1}), options=options))


@pytest.fixture(scope="module")
def ppo():
    options = Options(separate=("POS", "NEG"), audits=0)
    result = probe(tiny(), rollouts(48, batch_size=3), final(9), bind("ppo", {"epsilon": 0.2}), options=options)
    return d.Probe(keys("ppo"), result)


def wide(table, values="G"):
    return table.pivot(index=["segment", "filtered"], columns="component", values=values)


@pytest.mark.parametrize("name", ["dpo", "ppo"])
@pytest.mark.parametrize("options", [{}, {"segments": segments.single(3)}, {"fence": 0.1}, {"groups": 5}])
def test_components_and_segments_add_up_in_every_row(name, options, request):
    table = d.dynamics(request.getfixturevalue(name), d.Options(**options))
    g = wide(table)
    whole, groups = g.xs("all"), [c for c in g.columns if c not in ("TOT", "POS", "NEG")]
    np.testing.assert_allclose(g["POS"] + g["NEG"], g["TOT"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(whole["POS"] + whole["NEG"], whole["TOT"], rtol=1e-12, atol=1e-12)
    complete = whole if name == "dpo" and "groups" not in options else whole[~whole.index]  # without drifts D′ is whole
    np.testing.assert_allclose(complete[groups].sum(axis=1), complete["TOT"], rtol=1e-12, atol=1e-12)
    parts = g.drop(index="all").groupby("filtered").sum()
    largest = whole.abs().to_numpy().max()
    for component in ("TOT", "POS", "NEG"):  # segments know no outliers of D′
        assert parts.loc[False, component] == pytest.approx(whole.loc[False, component], rel=1e-5, abs=1e-6 * largest)


def test_outliers_leave_and_are_counted(dpo):
    table = d.dynamics(dpo, d.Options(fence=0.1)).query("segment == 'all' and component == 'TOT'").set_index("filtered")
    assert table.loc[True, "n_outliers"] > 0
    assert table.loc[True, "n_batches"] + table.loc[True, "n_outliers"] == table.loc[False, "n_batches"] == 21
    norms = dpo.tables.batches.query("set == 'train' and component == 'TOT' and segment == 'all'").sort_values("batch")
    q1, q3 = norms["grad_norm"].quantile([0.25, 0.75])
    kept = norms[norms["grad_norm"] <= q3 + 0.1 * (q3 - q1)]
    of_train = np.average(kept["dot"], weights=kept["n"])
    batches = dpo.tables.batches.query("set == 'final'").set_index("batch")["grad_norm"]
    q1, q3 = batches.quantile([0.25, 0.75])
    outside = batches.index[batches > q3 + 0.1 * (q3 - q1)]
    assert table.loc[True, "n_final_outliers"] == len(outside) > 0
    drifts = dpo.tables.drifts.groupby(["sample_id", "batch"])["drift_TOT"].sum().reset_index()
    change = drifts[~drifts["batch"].isin(outside)]["drift_TOT"].mean() - drifts["drift_TOT"].mean()
    assert table.loc[True, "G"] == pytest.approx(of_train + change, rel=1e-5, abs=1e-6)


def test_unfiltered_total_is_the_sum_of_coefficients_times_scores(ppo):
    g = d.dynamics(ppo).query("segment == 'all' and component == 'TOT' and not filtered")["G"].item()
    scores = ppo.tables.scores
    assert g == pytest.approx(-(scores["coefficient"] * scores["score"]).sum(), rel=1e-12)


def test_without_optimizer_state_there_is_no_alignment_of_adamw(dpo, ppo):
    assert d.dynamics(dpo)["G_adamw"].isna().all()
    assert d.dynamics(ppo)["G_adamw"].isna().all()


def test_cosine_is_within_one_and_norms_are_those_of_the_batches(dpo):
    table = d.dynamics(dpo)
    assert table["cosine"].abs().max() <= 1 + 1e-6
    row = table.query("segment == 'all' and component == 'TOP' and not filtered").iloc[0]
    stored = dpo.tables.batches.query("component == 'TOP' and segment == 'all'")
    assert row["grad_norm"] == pytest.approx(np.average(stored["grad_norm"], weights=stored["n"]))
    v = table.drop_duplicates("segment").set_index("segment")["v_norm"]
    assert v["all"] == dpo.tables.metadata["v_norms"]["all"]
    assert (v.drop("all") ** 2).sum() == pytest.approx(v["all"] ** 2)


def test_another_beta_equals_probing_with_it(dpo):
    train = with_reference(pairs(42, batch_size=2), tiny(seed=1))
    other = d.Probe(keys(), probe(tiny(), train, final(9), bind("dpo", {"beta": 0.5}), options=Options(audits=0)))
    sliced = d.dynamics(dpo, d.Options(parameters={"beta": 0.5})).query("not filtered").set_index("component")["G"]
    probed = d.dynamics(other).query("segment == 'all' and not filtered").set_index("component")["G"]
    pd.testing.assert_series_equal(sliced, probed, rtol=1e-9)


def test_a_controlled_objective_scales_its_group(ppo):
    plain = d.dynamics(ppo).query("segment == 'all' and not filtered").set_index("component")["G"]
    options = d.Options(objective="cppo_top", parameters={"lambda": 0.3})
    damped = d.dynamics(ppo, options).query("not filtered").set_index("component")["G"]
    assert damped["TOP"] == pytest.approx(0.3 * plain["TOP"], rel=1e-9)
    assert damped["MID"] == pytest.approx(plain["MID"], rel=1e-9)
    assert damped["TOT"] == pytest.approx(plain["TOT"] - 0.7 * plain["TOP"], rel=1e-9)


def test_equal_weights_are_all_top():
    train = with_reference(pairs(9), tiny())
    table = d.dynamics(
        d.Probe(keys(), probe(tiny(), train, final(5), bind("dpo", {"beta": 0.1}), options=Options(audits=0)))
    )
    g = table.query("segment == 'all' and not filtered").set_index("component")["G"]
    assert g["TOP"] == pytest.approx(g["TOT"], rel=1e-12)
    assert g["MID"] == g["BOT"] == 0
    assert table["equal_weights"].all()


def test_thirds_and_partitions():
    assert [len(part) for part in segments.thirds(32).values()] == [12, 10, 12]  # with embeddings and head
    assert segments.thirds(4)["middle"] == ["layer.1", "layer.2"]
    for layers in range(1, 13):
        segments.check(segments.thirds(layers), layers)
    with pytest.raises(InputError, match=r"layer\.1 must be in exactly one"):
        segments.check({"low": ["embeddings", "layer.0"], "high": ["head"]}, 2)
    names = ["model.embed.weight", "model.layers.0.w", "model.layers.10.w", "model.norm.weight", "head.weight"]
    assert segments.units(names) == ["embeddings", "layer.0", "layer.10", "head", "head"]


@pytest.fixture
def results(tmp_path, dpo, ppo):
    """results/<experiment>: three checkpoints of a DPO run, one of a PPO run."""
    for probed, steps in ((dpo, (0, 10, 30)), (ppo, (0,))):
        for step in steps:
            folder = tmp_path / "m" / probed.keys["run"] / "seed0" / "probe" / "heldout" / f"step-{step}"
            folder.mkdir(parents=True)
            tables.write(probed.tables, folder)
    return tmp_path


def tabulate(results):
    return d.tabulate([stored.load(*item) for item in stored.find(results)])


def test_tabulate_has_every_column_and_flags_losses_that_rose(results):
    table = tabulate(results)
    assert list(table.columns) == d.COLUMNS
    assert not table["equal_weights"].any()
    assert rises(table, "dpo") == {0: None, 10: False, 30: False}  # the same tables at every step
    assert rises(table, "ppo") == {0: None}
    folder = results / "m" / "dpo" / "seed0" / "probe" / "heldout" / "step-10"
    changed = tables.read(folder)
    changed.batches["loss"] += 1
    tables.write(changed, folder)
    assert rises(tabulate(results), "dpo") == {0: None, 10: True, 30: False}


def rises(table, run):
    flags = table[table["run"] == run].groupby("step")["loss_rose"].first()
    return {step: None if pd.isna(flag) else bool(flag) for step, flag in flags.items()}


def test_a_loss_does_not_rise_while_a_schedule_moves_nor_online(dpo, ppo):
    def at(probed, objective, parameters, step, loss):
        batches = probed.tables.batches.assign(loss=loss)
        metadata = probed.tables.metadata | {"objective": objective, "parameters": parameters, "step": step}
        return d.Probe(keys(objective, step), replace(probed.tables, batches=batches, metadata=metadata))

    losses = {0: 1.0, 10: 2.0, 20: 3.0, 30: 4.0, 40: 3.5}
    moving = {"beta": 0.1, "t1": 10, "t2": 30}
    probes = [at(dpo, "cdpo", moving, step, loss) for step, loss in losses.items()]
    probes += [at(ppo, "ppo", {}, step, loss) for step, loss in losses.items()]
    table = d.tabulate(probes[::-1])
    assert rises(table, "cdpo") == {0: None, 10: True, 20: None, 30: None, 40: False}
    assert set(rises(table, "ppo").values()) == {None}


def test_an_empty_experiment_is_an_error(tmp_path):
    with pytest.raises(InputError, match="holds no probe"):
        stored.find(tmp_path)


def test_only_the_given_folders_are_read_and_their_paths_say_what_they_are_of(results, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    experiment = tmp_path / "results" / "demo"
    experiment.mkdir(parents=True)
    (results / "m").rename(experiment / "m")
    found = stored.steps_of(["results/demo/m/dpo/seed0/probe/heldout"])
    assert [about for about, _ in found] == [keys(step=step) for step in (0, 10, 30)]
    assert [about for about, _ in stored.find(experiment)] == [*(about for about, _ in found), keys("ppo")]
    with pytest.raises(InputError, match="is not of the form"):
        stored.steps_of([str(experiment / "m/dpo/seed0/probe/heldout")])


@pytest.mark.e2e
def test_the_command_slices_in_seconds_and_without_torch_models(results, tmp_path):
    command = [sys.executable, "-m", "po_dynamics.dynamics", str(results), "--beta", "0.05", "--groups", "5"]
    start = time.perf_counter()
    subprocess.run([*command, "--lambda", "0.3", "--output", str(tmp_path / "new.csv")], check=True)
    assert time.perf_counter() - start < 60  # a few seconds on an idle machine
    table = pd.read_csv(tmp_path / "new.csv")
    assert {"Q1", "Q5"} <= set(table["component"])
    assert table.groupby("run")["objective"].unique().map(list).to_dict() == {"dpo": ["dpo"], "ppo": ["cppo_top"]}
    modules = "po_dynamics.dynamics.__main__, po_dynamics.dynamics.observables.displacement"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("family", "probed", "objective", "parameters", "chosen"),
    [
        ("offline", "dpo", None, {}, (None, {})),
        ("offline", "dpo", None, {"beta": 0.5, "lambda": 0.3}, (None, {"beta": 0.5})),
        ("offline", "dpo", None, {"lambda": 0.3}, None),  # of the other family only
        ("online", "ppo", None, {"lambda": 0.3}, ("cppo_top", {"lambda": 0.3})),
        ("online", "cppo_mid", None, {"lambda": 0.3}, (None, {"lambda": 0.3})),
        ("online", "ppo", "hppo", {"tau": 1, "beta": 1}, ("hppo", {"tau": 1})),
        ("online", "ppo", "cdpo", {"beta": 1}, None),
        ("online", "of_a_former_release", None, {"lambda": 0.3}, ("cppo_top", {"lambda": 0.3})),
    ],
)
def test_parameters_choose_the_objective_of_each_run(family, probed, objective, parameters, chosen):
    assert reslice.variant({"family": family, "objective": probed}, objective, parameters) == chosen


def test_parameters_that_no_objective_has_together_are_an_error():
    with pytest.raises(InputError, match="no online objective has all of lambda, t3; give --objective"):
        reslice.variant({"family": "online", "objective": "ppo"}, None, {"lambda": 1, "t3": 2})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gamma-ray", "1"], "unknown argument --gamma-ray"),
        (["--beta", "large"], "must be a number"),
        (["--beta"], "needs a value"),
        (["--t1", "5"], "missing parameter t2"),
    ],
)
def test_the_command_names_mistakes(results, arguments, message):
    with pytest.raises(SystemExit, match=message):
        reslice.main([str(results), *arguments])


def test_a_file_that_is_no_probe_table_is_an_error(results):
    folder = results / "m" / "dpo" / "seed0" / "probe" / "heldout" / "step-0"
    pd.DataFrame({"a": [1]}).to_parquet(folder / "scores.parquet")
    with pytest.raises(InputError, match="not a table of a probe"):
        tabulate(results)
    (folder / "scores.parquet").write_bytes(b"PAR1 broken")
    with pytest.raises(InputError, match="cannot be read"):
        tabulate(results)


# ------------------------------------------------------------------------------------------------------ observables


def test_advantages_are_means_over_the_groups(dpo, ppo):
    table = distributions.advantages(ppo).set_index("group")
    scores = ppo.tables.scores
    top = scores[scores["weight"] >= scores["weight"].quantile(2 / 3)]
    assert table.loc["TOP", "raw_advantage"] == pytest.approx(top["raw_advantage"].mean())
    assert table.loc[["TOP", "MID", "BOT"], "n"].sum() == table.loc["TOT", "n"] == len(scores)
    assert distributions.advantages(dpo).empty


def test_weights_are_ordered_between_groups(dpo, ppo):
    for probed, n in ((dpo, 42), (ppo, len(ppo.tables.scores))):
        table = distributions.weights(probed).set_index("group")
        assert table.loc["TOT", "n"] == n
        assert table.loc["BOT", "q100"] <= table.loc["MID", "q0"] <= table.loc["MID", "q100"] <= table.loc["TOP", "q0"]


def test_log_probs_by_kind(dpo):
    table = logps.logps(dpo).set_index("kind")
    scores = dpo.tables.scores
    assert table.loc["chosen", "logp"] == pytest.approx(scores.query("role == 'chosen'")["logprob"].sum() / 42)
    assert (
        table.loc[["chosen_argmax", "rejected_argmax"], "per_token"]
        >= table.loc[["chosen", "rejected"], "per_token"].to_numpy()
    ).all()
    losses = dpo.tables.batches.query("set == 'final'")
    assert table.loc["greedy", "logp"] == pytest.approx(-np.average(losses["loss"], weights=losses["n"]))


def test_entanglement_is_the_inner_product_of_the_two_ascent_directions(dpo):
    table = logps.entanglement(dpo)
    assert len(table) == 21
    assert table["cosine"].abs().max() <= 1 + 1e-6
    whole = dpo.tables.batches.query("component == 'TOT' and segment == 'all'").set_index("batch")["grad_norm"]
    squares = table["positive_norm"] ** 2 + table["negative_norm"] ** 2 - 2 * table["inner"]
    np.testing.assert_allclose(np.sqrt(squares), whole.loc[table["batch"]], rtol=1e-5)

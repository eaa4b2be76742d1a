import itertools

import numpy as np
import pandas as pd
import pytest
from po_dynamics.errors import InputError
from po_dynamics.evaluation import stats
from scipy import stats as scipy_stats

RUNS = {
    "dpo": {"objective": "dpo", "family": "offline", "parameters": {"beta": 0.1}},
    "cdpo": {"objective": "cdpo", "family": "offline", "parameters": {"beta": 0.1}},
    "ppo": {"objective": "ppo", "family": "online", "parameters": {}},
    "hppo_tau-0.05": {"objective": "hppo", "family": "online", "parameters": {"tau": 0.05}},
}


def outcomes_of(rates, n=200, seeds=(0,), run="dpo", model="m", seed=0):
    """Outcomes with the given win probability per step; prompts have a difficulty of their own."""
    rng = np.random.default_rng(seed)
    difficulty = np.random.default_rng(99).normal(size=n)
    tables = []
    for run_seed, (step, rate) in itertools.product(seeds, rates.items()):
        noise = rng.normal(size=n)
        wins = (difficulty + noise) / np.sqrt(2) < scipy_stats.norm.ppf(rate)
        tables.append(
            pd.DataFrame(
                {"model": model, "run": run, "seed": run_seed, "step": step, "id": [f"p{i}" for i in range(n)]}
                | {"preference": wins.astype(float), "preference_swapped": wins.astype(float)}
                | {
                    "outcome": wins.astype(float),
                    "length_difference": 0.0,
                    "n_tokens": 10 + step,
                    "kl": 0.1 * step,
                    "reward": 1.0,
                    "degenerate": i0(n),
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def i0(n):
    return [i == 0 for i in range(n)]


@pytest.fixture
def folder(tmp_path):
    def write(name, responses, annotations, baseline=("a", "four")):
        names = ("responses", "annotations", "baseline")
        paths = {table: tmp_path / f"{name}-{table}.parquet" for table in names}
        responses.to_parquet(paths["responses"])
        annotations.to_parquet(paths["annotations"])
        pd.DataFrame([baseline], columns=["id", "response"]).to_parquet(paths["baseline"])
        return {"model": "m", "run": "dpo", "seed": 0, **paths}

    return write


def test_load_outcomes_joins_on_step_and_id(folder):
    responses = pd.DataFrame(
        {"step": [0, 1], "id": ["a", "a"], "n_tokens": [3, 4], "kl": 0.0, "reward": 1.0, "degenerate": False}
        | {"response": ["four", "longer"]}
    )
    annotations = pd.DataFrame({"step": [1, 0], "id": "a", "preference": [1.0, 0.5], "preference_swapped": [0.5, 0.5]})
    table = stats.load_outcomes([folder("x", responses, annotations)])
    assert table[["step", "outcome", "n_tokens"]].to_numpy().tolist() == [[0, 0.5, 3], [1, 0.75, 4]]
    assert table["length_difference"].tolist() == [0, 2]
    with pytest.raises(InputError, match="1 responses are not in both"):
        stats.load_outcomes([folder("y", responses, annotations[:1])])
    with pytest.raises(InputError, match=r"2 preferences are not in \[0, 1\]"):
        stats.load_outcomes([folder("z", responses, annotations.assign(preference=2.0))])
    with pytest.raises(InputError, match="2 responses are given twice"):
        stats.load_outcomes([folder("x", responses, annotations)] * 2)
    with pytest.raises(InputError, match="nothing was judged"):
        stats.load_outcomes([])


def test_win_rates_are_means_with_units(folder):
    table = outcomes_of({0: 0.5, 10: 0.8}, n=50, seeds=(0, 1))
    table.loc[table.index[:5], "preference_swapped"] = 1 - table["preference"][:5]  # the two orders disagree
    table.loc[table.index[5:8], ["preference", "outcome"]] = np.nan
    table.loc[table.index[:5], "outcome"] = 0.5
    rates = stats.win_rates(table, "gold")
    assert list(rates) == [
        *("model", "run", "seed", "step", "judge", "win_rate", "low", "high", "n", "n_missing"),
        *("order_consistency", "mean_length", "kl_to_sft", "mean_reward", "degenerate", "first_slot"),
        *("length_difference", "length_controlled", "length_controlled_low", "length_controlled_high"),
        "length_extrapolates",
    ]
    first = rates.iloc[0]
    assert (first["n"], first["n_missing"]) == (47, 3)
    assert first["win_rate"] == pytest.approx(100 * table["outcome"][:50].mean())
    assert first["order_consistency"] == pytest.approx(100 * 42 / 47)
    assert (first["mean_length"], first["degenerate"]) == (10, 2)
    assert (rates["low"] < rates["win_rate"]).all()
    assert (rates["high"] > rates["win_rate"]).all()
    shuffled = stats.win_rates(table.sample(frac=1, random_state=1), "gold")
    pd.testing.assert_frame_equal(shuffled, rates)


def test_one_order_is_enough_where_no_pair_was_asked_in_both(folder):
    """A folder that was judged in one random order per prompt; in one judged in both, half a verdict is none."""
    columns = {"n_tokens": 3, "kl": 0.0, "reward": 1.0, "degenerate": False, "response": "four"}
    responses = pd.DataFrame({"step": 0, "id": list("abc"), **columns})
    orders = {"preference": [1.0, np.nan, np.nan], "preference_swapped": [np.nan, 0.25, np.nan]}
    annotations = pd.DataFrame({"step": 0, "id": list("abc"), **orders})
    table = stats.load_outcomes([folder("one", responses, annotations)])
    assert table["outcome"].fillna(-1).tolist() == [1, 0.25, -1]
    rates = stats.win_rates(table, "gold").iloc[0]
    assert (rates["win_rate"], rates["n"], rates["n_missing"]) == (62.5, 2, 1)
    assert np.isnan(rates["order_consistency"])
    assert rates["first_slot"] == pytest.approx(100 * (0.25 + 0) / 2)  # the candidate's 0.25, the baseline's 0
    annotations["preference_swapped"] = 1.0
    table = stats.load_outcomes([folder("both", responses, annotations)])
    assert table["outcome"].fillna(-1).tolist() == [1, -1, -1]


def test_a_judge_of_places_gives_one_half_and_is_seen():
    table = outcomes_of({10: 0.8}, n=50).assign(preference=0.0, preference_swapped=1.0, outcome=0.5)
    rates = stats.win_rates(table, "always_first").iloc[0]
    assert rates[["win_rate", "order_consistency", "first_slot"]].tolist() == [50, 0, 100]


def test_interval_agrees_with_the_normal_approximation_and_covers():
    rng = np.random.default_rng(3)
    values = rng.choice([0, 0.5, 1], p=[0.3, 0.1, 0.6], size=(400, 300))
    low, high = stats.interval(values)
    half = 1.96 * values.std(0) / 20
    assert np.allclose(low, values.mean(0) - half, atol=0.006)
    assert np.allclose(high, values.mean(0) + half, atol=0.006)
    assert 0.91 < np.mean((low <= 0.65) & (high >= 0.65)) < 0.985
    assert np.array_equal(stats.interval(values), stats.interval(values))


def test_interval_with_missing_values_and_without_variation():
    values = np.array([[1.0, 1.0, 0.5, 0.0]] * 40)
    values[20:, 0] = np.nan
    bounds = stats.interval(values)
    assert bounds[:, 0] == pytest.approx([0.025 ** (1 / 20), 1])  # the exact bound for 20 of 20
    assert bounds[:, 1] == pytest.approx([0.025 ** (1 / 40), 1])
    assert bounds[:, 2].tolist() == [0.5, 0.5]  # identical outputs: a tie by construction
    assert bounds[:, 3] == pytest.approx([0, 1 - 0.025 ** (1 / 40)])


def test_equal_runs_differ_by_nothing():
    outcomes = outcomes_of({0: 0.5, 10: 0.7}, n=30, seeds=(0, 1, 2))
    twin = stats.results_table(pd.concat([outcomes, outcomes.assign(run="cdpo")]), RUNS).set_index("run").loc["cdpo"]
    assert (twin["difference"], twin["peak_difference"]) == (0, 0)
    assert twin["difference_low"] <= 0 <= twin["difference_high"]
    assert twin["p_holm"] == 1


def test_holm_against_the_textbook():
    assert stats.holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm(np.array([np.nan, 0.6, 0.5]))[1:] == pytest.approx([1, 1])
    assert np.isnan(stats.holm(np.array([np.nan, 0.5]))[0])


def experiment():
    return pd.concat(
        [
            outcomes_of({0: 0.5, 10: 0.7, 20: 0.65}, run="dpo", seeds=(0, 1), seed=1),
            outcomes_of({0: 0.5, 10: 0.8, 20: 0.85}, run="cdpo", seed=2),
            outcomes_of({0: 0.5, 10: 0.55}, run="ppo", seeds=(0, 1), seed=3),
            outcomes_of({0: 0.5, 10: 0.55}, run="hppo_tau-0.05", seeds=(0, 1), seed=4),
            outcomes_of({0: 0.2}, run="base", seed=5),
        ]
    )


def test_results_table():
    outcomes = experiment()
    table = stats.results_table(outcomes, RUNS).set_index("run")
    assert list(table.index) == ["base", "dpo", "cdpo", "ppo", "hppo_tau-0.05"]
    assert table["parent"].fillna("").tolist() == ["", "", "dpo", "", "ppo"]
    dpo, cdpo = table.loc["dpo"], table.loc["cdpo"]
    of_seeds = outcomes[(outcomes["run"] == "dpo") & (outcomes["step"] == 20)].groupby("seed")["outcome"].mean() * 100
    assert dpo["final"] == pytest.approx(of_seeds.mean())
    assert dpo["final_std"] == pytest.approx(of_seeds.std(ddof=1))
    assert (dpo["final_step"], dpo["peak_step"], dpo["n_seeds"], dpo["n"]) == (20, 10, 2, 200)
    assert dpo["mean_length"] == 30
    assert np.isnan(cdpo["final_std"])
    assert np.isnan(dpo["p"])
    assert cdpo["difference"] == pytest.approx(cdpo["final"] - dpo["final"])
    assert cdpo["difference_low"] < cdpo["difference"] < cdpo["difference_high"]
    assert cdpo["parent_std"] == pytest.approx(of_seeds.std(ddof=1))
    pd.testing.assert_frame_equal(
        stats.results_table(outcomes.sample(frac=1, random_state=0), RUNS).set_index("run"), table
    )


def trainings(rates, run, n=400, step=20, **columns):
    """Outcomes of one training per rate, seeds 0, 1, …, at step 0 (ties) and at `step`."""
    tables = [outcomes_of({step: rate}, n, (i,), run, seed=100 * len(run) + i) for i, rate in enumerate(rates)]
    start = [table.assign(step=0, outcome=0.5, preference=0.5, preference_swapped=0.5) for table in tables]
    return pd.concat([*tables, *start]).assign(**columns)


@pytest.mark.parametrize(("ours", "theirs", "unit"), [(1, 1, "prompt"), (1, 5, "prompt"), (5, 2, "prompt")])
def test_with_fewer_than_three_seeds_there_is_an_interval_over_prompts_and_no_test(ours, theirs, unit):
    outcomes = pd.concat([trainings([0.7] * ours, "cdpo"), trainings([0.5] * theirs, "dpo")])
    row = stats.results_table(outcomes, RUNS).set_index("run").loc["cdpo"]
    assert row["unit"] == unit
    assert 0 < row["difference_low"] < row["difference"] < row["difference_high"]
    assert row[["p", "p_holm", "peak_p", "peak_p_holm", "detectable", "peak_detectable"]].isna().all()


def test_with_five_seeds_each_a_large_difference_is_found_and_corrected():
    ours = [trainings([0.7, 0.72, 0.69, 0.71, 0.73], "cdpo"), trainings([0.5, 0.52, 0.49, 0.51, 0.5], "dpo")]
    outcomes = pd.concat([*ours, ours[1].assign(run="ipo")])
    runs = RUNS | {"ipo": {"objective": "ipo", "family": "offline", "parameters": {}}}
    row = stats.results_table(outcomes, runs).set_index("run").loc["cdpo"]
    assert row["unit"] == "training"
    assert row["p"] == pytest.approx(2 / 252)
    assert row["p_holm"] == pytest.approx(4 / 252)
    assert 0 < row["detectable"] < 10
    assert row["difference_low"] > 10
    alone = stats.interval(ours[0].query("step == 20").pivot(index="id", columns="seed", values="outcome").to_numpy())
    assert np.ptp(alone.mean(1)) < (row["final_high"] - row["final_low"]) / 100 + 1e-9  # over trainings, too


def test_the_best_checkpoint_is_never_the_model_that_a_run_starts_from():
    runs = RUNS | {"late": {"objective": "dpo_no_pos", "family": "offline", "parameters": {}, "init_step": 10}}
    parent = outcomes_of({0: 0.9, 10: 0.85, 15: 0.84, 20: 0.6, 30: 0.5}, run="dpo", seed=1)
    late = outcomes_of({10: 0.85, 20: 0.4, 30: 0.3}, run="late", seed=2)
    table = stats.results_table(pd.concat([parent, late]), runs).set_index("run")
    assert table["peak_step"].to_dict() == {"dpo": 10, "late": 20}
    row = table.loc["late"]
    assert row["peak_steps"] == 2  # 20 and 30: neither the start nor the parent's 15
    rates = {run: t[t["step"] == 20]["outcome"].mean() for run, t in (("dpo", parent), ("late", late))}
    assert row["peak_difference"] == pytest.approx(100 * (rates["late"] - rates["dpo"]))
    only_start = pd.concat([parent, late[late["step"] == 10]])
    row = stats.results_table(only_start, runs).set_index("run").loc["late"]
    assert row[["peak", "peak_step", "peak_difference"]].isna().all()
    assert row["peak_steps"] == 0


def test_a_table_is_written_with_all_its_digits_or_not_at_all(tmp_path):
    table = stats.results_table(experiment(), RUNS)
    stats.write_csv(table, tmp_path / "results.csv")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "results.csv"), table, check_dtype=False, rtol=1e-15)
    assert list(tmp_path.iterdir()) == [tmp_path / "results.csv"]
    with pytest.raises(AttributeError):
        stats.write_csv(None, tmp_path / "results.csv")
    assert list(tmp_path.iterdir()) == [tmp_path / "results.csv"]

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
    def write(name, responses, annotations):
        paths = tmp_path / f"{name}-r.parquet", tmp_path / f"{name}-a.parquet"
        responses.to_parquet(paths[0])
        annotations.to_parquet(paths[1])
        return {"model": "m", "run": "dpo", "seed": 0, "responses": paths[0], "annotations": paths[1]}

    return write


def test_load_outcomes_joins_on_step_and_id(folder):
    responses = pd.DataFrame(
        {"step": [0, 1], "id": ["a", "a"], "n_tokens": [3, 4], "kl": 0.0, "reward": 1.0, "degenerate": False}
    )
    annotations = pd.DataFrame({"step": [1, 0], "id": "a", "preference": [1.0, 0.5], "preference_swapped": [0.5, 0.5]})
    table = stats.load_outcomes([folder("x", responses, annotations)])
    assert table[["step", "outcome", "n_tokens"]].to_numpy().tolist() == [[0, 0.5, 3], [1, 0.75, 4]]
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
        *("order_consistency", "mean_length", "kl_to_sft", "mean_reward", "degenerate"),
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
    assert stats.interval(values[:, 3:], rates=False)[:, 0].tolist() == [0, 0]  # differences of two equal runs


def test_equal_runs_differ_by_nothing():
    outcomes = outcomes_of({0: 0.5, 10: 0.7}, n=30)
    twin = stats.results_table(pd.concat([outcomes, outcomes.assign(run="cdpo")]), RUNS).set_index("run").loc["cdpo"]
    assert (
        twin[["difference", "difference_low", "difference_high", "detectable", "peak_difference"]].tolist() == [0] * 5
    )
    assert twin["p_holm"] == 1


def test_sign_flip_is_exact_for_few_prompts_and_uniform_under_the_null():
    exact = scipy_stats.permutation_test(
        (np.array([3.0, 1, 2, -0.5, 4]),), np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert stats.sign_flip_p(np.array([3.0, 1, 2, -0.5, 4])) == pytest.approx(exact, abs=0.01)
    rng = np.random.default_rng(0)
    p = [stats.sign_flip_p(rng.choice([-1, -0.5, 0, 0.5, 1], size=100), flips=999) for _ in range(400)]
    assert 0.02 < np.mean(np.array(p) <= 0.05) < 0.085
    assert stats.sign_flip_p(np.zeros(10)) == 1
    assert stats.sign_flip_p(np.ones(100)) == 1 / 10000


def test_holm_against_the_textbook():
    assert stats.holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm(np.array([np.nan, 0.6, 0.5]))[1:] == pytest.approx([1, 1])
    assert np.isnan(stats.holm(np.array([np.nan, 0.5]))[0])


def test_detectable_difference_is_found_with_its_power():
    rng = np.random.default_rng(0)
    sample = rng.normal(size=5000)
    difference = stats.detectable_difference(sample[:100] / sample[:100].std(ddof=1))
    assert difference == pytest.approx(0.28016, abs=1e-4)
    hits = [scipy_stats.ttest_1samp(rng.normal(difference, 1, 100), 0).pvalue < 0.05 for _ in range(2000)]
    assert 0.75 < np.mean(hits) < 0.84


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
    # Paired over the seed in common, not over both seeds of the parent.
    final = outcomes[(outcomes["step"] == 20) & (outcomes["seed"] == 0)].pivot(
        index="id", columns="run", values="outcome"
    )
    assert cdpo["difference"] == pytest.approx(100 * (final["cdpo"] - final["dpo"]).mean())
    assert cdpo["difference_low"] < cdpo["difference"] < cdpo["difference_high"]
    assert cdpo["p_holm"] == pytest.approx(min(1, 2 * cdpo["p"]))
    assert cdpo["p_holm"] < 0.01
    assert table.loc["hppo_tau-0.05", "p_holm"] > 0.05
    pd.testing.assert_frame_equal(
        stats.results_table(outcomes.sample(frac=1, random_state=0), RUNS).set_index("run"), table
    )


def test_pairing_narrows_the_interval():
    """The same prompts are hard for both runs, so the difference is better known than from two separate rates."""
    a = outcomes_of({1: 0.6}, n=2000, seed=1)["outcome"].to_numpy()
    b = outcomes_of({1: 0.6}, n=2000, seed=2)["outcome"].to_numpy()
    paired = np.ptp(stats.interval((a - b)[:, None], rates=False)[:, 0])
    separate = np.hypot(*np.ptp(stats.interval(np.stack([a, b], 1)), axis=0))
    assert paired < 0.9 * separate


def test_cross_fitted_peak_is_not_optimistic():
    """Many equally good checkpoints: the best one looks better than it is, the cross-fitted one does not."""
    naive, fitted = [], []
    for seed in range(30):
        mean = outcomes_of(dict.fromkeys(range(30), 0.5), n=100, seed=seed).pivot(
            index="id", columns="step", values="outcome"
        )
        mean = pd.DataFrame(np.random.default_rng(seed).integers(0, 2, mean.shape), mean.index, mean.columns)
        naive.append(mean.mean().max())
        fitted.append(stats._cross_fitted_peak(mean).mean())
        assert sorted(stats._cross_fitted_peak(mean).index) == sorted(mean.index)
    assert np.mean(naive) > 0.57
    assert np.mean(fitted) == pytest.approx(0.5, abs=0.025)


def test_a_table_is_written_with_all_its_digits_or_not_at_all(tmp_path):
    table = stats.results_table(experiment(), RUNS)
    stats.write_csv(table, tmp_path / "results.csv")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "results.csv"), table, check_dtype=False, rtol=1e-15)
    assert list(tmp_path.iterdir()) == [tmp_path / "results.csv"]
    with pytest.raises(AttributeError):
        stats.write_csv(None, tmp_path / "results.csv")
    assert list(tmp_path.iterdir()) == [tmp_path / "results.csv"]

"""Made-up tables in the formats of docs/architecture.md, for tests of figures and report only."""

import numpy as np
import pandas as pd

RUNS = {
    "dpo": {"objective": "dpo", "family": "offline", "parameters": {"beta": 0.1}},
    "cdpo": {"objective": "cdpo", "family": "offline", "parameters": {"beta": 0.1, "t1": 125, "t2": 375}},
    "dpo_no_neg": {"objective": "dpo_no_neg", "family": "offline", "parameters": {"beta": 0.1, "before": 75}},
    "dpo_no_pos": {"objective": "dpo_no_pos", "family": "offline", "parameters": {"beta": 0.1, "after": 175}},
    "ppo": {"objective": "ppo", "family": "online", "parameters": {"epsilon": 0.2}},
    "cppo_top_lambda-0.3": {"objective": "cppo_top", "family": "online", "parameters": {"lambda": 0.3}},
    "cppo_top_lambda-0.7": {"objective": "cppo_top", "family": "online", "parameters": {"lambda": 0.7}},
    "cppo_mid_lambda-0.5": {"objective": "cppo_mid", "family": "online", "parameters": {"lambda": 0.5}},
    "hppo_t3-5_tau-0.05": {"objective": "hppo", "family": "online", "parameters": {"t3": 5, "tau": 0.05}},
    "ppo_no_top": {"objective": "ppo_no_top", "family": "online", "parameters": {}},
    "ppo_no_mid": {"objective": "ppo_no_mid", "family": "online", "parameters": {}},
    "ipo": {"objective": "ipo", "family": "offline", "parameters": {"beta": 0.2}},
}
STEPS = {"offline": [0, 12, 25, 50, 88, 125, 175, 212, 250], "online": [0, 3, 6, 12, 21, 30, 42, 51, 60]}


def dynamics(run="dpo", seeds=(0, 1), model="menagerie"):
    steps = STEPS[RUNS[run]["family"]]
    rng = np.random.default_rng(len(run))
    rows = []
    for seed in seeds:
        for step in steps:
            u = step / steps[-1]
            if RUNS[run]["family"] == "offline":
                pos, neg = 3 * np.cos(2.6 * u) * np.exp(-u), -1.5 * np.cos(2.9 * u)
                thirds = np.array([0.2, 0.5, 0.3]) if step else np.array([1, 0, 0])
            else:
                pos, neg, thirds = 0.8 + 0.3 * u, -0.85 - 0.33 * u, np.array([3.0, 1.5, -3.5 + 0.02])
                thirds = thirds / thirds.sum()
            pos, neg = pos + 0.1 * rng.normal(), neg + 0.1 * rng.normal()
            parts = {"TOT": pos + neg, "POS": pos, "NEG": neg}
            parts |= dict(zip(("TOP", "MID", "BOT"), thirds * (pos + neg), strict=True))
            for component, g in parts.items():
                half = 0.05 + 0.15 * abs(g)
                rows.append(
                    {"model": model, "run": run, "seed": seed, "step": step, "final_set": "heldout"}
                    | {"component": component, "segment": "all", "filtered": True, "G": g, "G_low": g - half}
                    | {
                        "G_high": g + half,
                        "cosine": 0.1,
                        "grad_norm": 1.0,
                        "equal_weights": step == 0 and RUNS[run]["family"] == "offline",
                        "n_batches": 80 - seed,
                        "n_outliers": step % 7,
                        "n_final_outliers": step % 3,
                        "n_train": 480,
                        "n_final": 360,
                        "two_way": True,
                        "resolved": bool(abs(g) > half),
                        "samples_needed": float(np.ceil(480 * (half / g) ** 2)) if g else np.inf,
                    }
                )
    return pd.DataFrame(rows)


def advantages(run="ppo", seeds=(0, 1), model="menagerie"):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {"model": model, "run": run, "seed": seed, "step": step, "final_set": "heldout", "group": group}
        | {"n": 900 + seed}
        | {"raw_advantage": level / 2 + 0.05 * rng.normal(), "advantage": level + 0.05 * rng.normal()}
        for seed in seeds
        for step in STEPS["online"]
        for group, level in (("TOP", -0.2), ("MID", 0.3), ("BOT", 0.02))
    )


def win_rates(model="menagerie", runs=RUNS):
    rng = np.random.default_rng(1)
    rows = []
    for i, (run, spec) in enumerate([("base", {"family": None}), *runs.items()]):
        steps = STEPS.get(spec["family"], [0])
        for seed in (0, 1) if run in ("dpo", "ppo") else (0,):
            for step in steps:
                u = step / max(steps[-1], 1)
                rise = (12 + i) * (1 if spec["family"] == "online" else 2)
                rate = 50 + rise * (u**0.5 - 0.3 * u**2) + 1.2 * rng.normal() * (step > 0) - 30 * (run == "base")
                rows.append(
                    {"model": model, "run": run, "seed": seed, "step": step, "judge": "gold", "win_rate": rate}
                    | {"low": rate - 4 * (step > 0), "high": rate + 4 * (step > 0), "n": 400, "n_missing": 0}
                    | {"order_consistency": 100.0, "mean_length": 20 + 5 * u, "kl_to_sft": 10 * u, "mean_reward": u}
                    | {"degenerate": 1.0}
                )
    return pd.DataFrame(rows)


def training(family="offline", seeds=(0, 1)):
    steps = np.arange(1, 251 if family == "offline" else 61)
    names = {
        "offline": "loss rewards_chosen rewards_rejected rewards_margins grad_norm learning_rate",
        "online": "reward kl_per_response kl_k3_per_response entropy policy_loss value_loss clip_fraction"
        " policy_grad_norm my_own episodes_per_second",
    }[family].split()
    curves = {}
    for seed in seeds:
        rng = np.random.default_rng(seed)
        columns = {
            name: np.log1p(steps) * (1 - i / 4) + 0.1 * rng.normal(size=len(steps)) for i, name in enumerate(names)
        }
        curves[seed] = pd.DataFrame({"step": steps, **columns, "constant": 1.0})
    return curves


def outcomes(model="menagerie", runs=RUNS, n=120):
    """Per-prompt outcomes as `stats.load_outcomes` gives them, some of the variants better than their parents."""
    rng = np.random.default_rng(2)
    tables = []
    for i, (run, spec) in enumerate([("base", {"family": None}), *runs.items()]):
        steps = STEPS.get(spec["family"], [0])
        for seed in (0, 1) if run in ("dpo", "ppo") else (0,):
            for step in steps:
                rate = 0.2 if run == "base" else 0.5 + (0.25 + 0.01 * i) * (step / steps[-1]) ** 0.5
                preference = (rng.random(n) < rate).astype(float) if step or run == "base" else np.full(n, 0.5)
                columns = {"model": model, "run": run, "seed": seed, "step": step, "id": [f"p{i}" for i in range(n)]}
                columns |= {"preference": preference, "preference_swapped": preference, "outcome": preference}
                columns |= {"length_difference": np.arange(n) % 41 - 15}
                columns |= {"n_tokens": 20, "kl": 0.02 * step, "reward": rate, "degenerate": False}
                tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def trainings(rates, model="menagerie", n=400, step=250):
    """Outcomes of runs with a training per win rate, as near to it as n prompts allow, at step 0 (ties) and `step`."""
    rng = np.random.default_rng(3)
    tables = []
    for run, of_seeds in rates.items():
        for seed, rate in enumerate(of_seeds):
            wins = rng.permutation(np.arange(n) < round(rate * n)).astype(float)
            for at, preference in ((0, np.full(n, 0.5)), (step, wins)):
                columns = {"model": model, "run": run, "seed": seed, "step": at, "id": [f"p{i}" for i in range(n)]}
                columns |= {"preference": preference, "preference_swapped": preference, "outcome": preference}
                columns |= {"length_difference": np.arange(n) % 41 - 15}
                tables.append(pd.DataFrame(columns | {"n_tokens": 20, "kl": 1.0, "reward": 0.0, "degenerate": False}))
    return pd.concat(tables, ignore_index=True)


def prediction(run="dpo", seeds=(0, 1), model="menagerie"):
    """Tables of `observables.prediction`, `changes` and `assess`: the change follows the prediction, with noise."""
    rng = np.random.default_rng(4)
    steps = STEPS[RUNS[run]["family"]]
    rows = [
        {"model": model, "run": run, "seed": seed, "step": step, "final_set": "heldout", "predicted": -(2 - step / 100)}
        | {"predicted_adamw": -30 + step / 10 if seed else np.nan, "change": -0.02 + step / 1e4 + 0.004 * rng.normal()}
        for seed in seeds
        for step in steps[:-1]
    ]
    values = {"rho": 0.81, "rho_step": 0.78, "rho_rate": -0.6, "over_step": 0.03, "over_rate": 0.21, "slope": 1.1}
    values |= {"partial_step": 0.2, "partial_rate": 0.7}
    tests = [
        {"predictor": predictor, "statistic": name, "value": value, "low": value - 0.1, "high": value + 0.1, "n": 16}
        for predictor in ("predicted", "predicted_adamw")
        for name, value in values.items()
    ]
    return pd.DataFrame(rows), pd.DataFrame(tests).assign(model=model, run=run, final_set="heldout", seeds=len(seeds))


def token_prediction(run="dpo", predictor="predicted_adamw", model="menagerie"):
    """Tables of `observables.token_prediction`, bins and statistics; D only offline."""
    sides = {"final": ["TOT"]}
    if RUNS[run]["family"] == "offline":
        sides["train"] = ["TOT", "POS", "NEG", "TOP", "MID", "BOT"]
    values = {"slope_origin": 0.8, "slope": 0.9, "rho": 0.5, "signs_right": 0.66, "signs_base": 0.6, "signs_over": 0.06}
    keys = {"model": model, "run": run, "final_set": "heldout", "predictor": predictor}
    bins, statistics = [], []
    for side, components in sides.items():
        for shift, component in enumerate(components):
            named = {**keys, "set": side, "component": component}
            for place, x in enumerate(np.linspace(-0.3, 0.5, 20)):
                y = 0.8 * x + shift / 100
                middle = {"q25": y - 0.05, "median": y, "q75": y + 0.05, "mean": y}
                bins.append({**named, "bin": place, "n": 100, "predicted": x, **middle})
            about = {"seed": pd.NA, "step": pd.NA, "next_step": pd.NA, "n_tokens": 12345, "n_samples": 240}
            for name, value in values.items():
                row = {"statistic": name, "value": value, "low": value - 0.02, "high": value + 0.02}
                statistics.append({**named, **about, **row})
    return pd.DataFrame(bins), pd.DataFrame(statistics)


def displacement(run="dpo", seeds=(0, 1), model="menagerie"):
    """Tables of `displacement.displacement` and `displacement.check`: both fall, the step on a pair never the cause."""
    slopes = {"chosen": -2.0, "rejected": -4.0, "chosen_argmax": 0.7, "rejected_argmax": 0.8, "greedy": 2.4}
    shares = {"lowers_chosen": 0.0, "raises_rejected": 0.0, "chosen_fell": 0.8, "rejected_rose": 0.1}
    steps = STEPS[RUNS[run]["family"]]
    rows = []
    for seed in seeds:
        for step in steps:
            u = step / steps[-1]
            values = {f"{kind}_per_response": (slope * u, 0.3 * u, 240) for kind, slope in slopes.items()}
            values |= {f"{kind}_per_token": (slope * u / 20, 0.02 * u, 4800) for kind, slope in slopes.items()}
            last = step == steps[-1]
            values |= {name: (x, 0.06, 60) for name, x in shares.items() if not last or "_fell" not in name}
            values |= {"positive_norm": (1.2 + u / 2, 0.1, 60), "negative_norm": (1.4 + u / 3, 0.1, 60)}
            values |= {"cosine": (0.25 * u, 0.04, 60)}
            at = {"model": model, "run": run, "seed": seed, "step": step, "final_set": "heldout"}
            rows += [
                at | {"quantity": name, "value": x, "low": x - half, "high": x + half, "n": n}
                for name, (x, half, n) in values.items()
            ]
    about = {"model": model, "run": run, "final_set": "heldout", "n": 600, "n_batches": 60, "n_seeds": len(seeds)}
    never = {"held_and_did": 0, "held_only": 0, "gain_low": -0.69, "gain_high": -0.54, "order": np.nan}
    never |= {"order_low": np.nan, "order_high": np.nan}
    checked = [
        {"role": "chosen", "did_only": 486, "neither": 114, "share_right": 0.19, "base_rate": 0.81, "gain": -0.62},
        {"role": "rejected", "did_only": 0, "neither": 600, "share_right": 1.0, "base_rate": 1.0, "gain": 0.0},
    ]
    return pd.DataFrame(rows), pd.DataFrame([about | never | row for row in checked])

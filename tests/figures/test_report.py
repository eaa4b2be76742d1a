import html.parser
import json
import pathlib
import re

import numpy as np
import pandas as pd
import pytest
import synthetic
from po_dynamics.errors import InputError
from po_dynamics.evaluation import stats
from po_dynamics.figures.plots.advantages import draw_advantages
from po_dynamics.figures.plots.checks.prediction import draw_prediction
from po_dynamics.figures.plots.checks.token_prediction import draw_token_prediction
from po_dynamics.figures.plots.displacement import draw_displacement
from po_dynamics.figures.plots.training import draw_training
from po_dynamics.figures.report import page as report

RUNS = synthetic.RUNS


class Page(html.parser.HTMLParser):
    """Tags that are open at the end, links, images and the text of a page."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.links, self.ids, self.words = [], [], [], set(), []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.sources += [attributes["src"]] if "src" in attributes else []
        self.links += [attributes["href"]] if "href" in attributes else []
        self.ids.add(attributes.get("id"))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("results") / "demo"
    (root / "tables").mkdir(parents=True)
    outcomes = synthetic.outcomes()
    paths = {"win_rates": root / "tables" / "win_rates.csv", "results": root / "tables" / "results.csv"}
    stats.write_csv(stats.win_rates(outcomes, "gold"), paths["win_rates"])
    stats.write_csv(stats.results_table(outcomes, RUNS), paths["results"])
    drawn = [root / "figures" / "m" / "figure_3_ppo.png", root / "figures" / "m" / "training_dpo.png"]
    draw_advantages(synthetic.advantages(), drawn[0], model="menagerie", run="ppo", runs=RUNS)
    draw_training(synthetic.training(), drawn[1], model="menagerie", run="dpo", runs=RUNS)
    record = {"outputs": ["x"], "host": {"machine": "x86_64", "cpus": 2, "gpus": []}, "commit": "abc123"}
    record |= {"started": "2026-11-21T01:00:00+00:00", "versions": {"torch": "2.13.0"}}
    for i, (rule, seconds) in enumerate([("train_sft", 59.7), ("train_offline", 61), ("train_offline", 3600.0)]):
        stage = record | {"rule": rule, "wall_seconds": seconds, "max_rss_mb": 900 + i}
        stage["started"] = f"2026-11-21T0{i}:00:00+00:00"
        (root / f"{i}.json").write_text(json.dumps(stage))
    (root / "broken.json").write_text("{")
    (root / "m" / "sft").mkdir(parents=True)
    (root / "m" / "sft" / "config.json").write_text(
        json.dumps(record | {"rule": "no", "wall_seconds": 1, "max_rss_mb": 1})
    )
    config = {"experiment": "demo", "note": "<script>alert(1)</script>", "runs": {"dpo": {"parameters": {"beta": 0.1}}}}
    return {"experiment": "demo", "config": config, "runs": RUNS, "figures": drawn, **paths}


@pytest.fixture(scope="module")
def page(inputs):
    output = inputs["results"].parents[1] / "report.html"
    report.write_report(output, report.Contents(**inputs))
    return Page(output.read_text(encoding="utf-8"))


def test_page_is_whole_and_needs_nothing_else(page, inputs):
    assert page.open == []
    assert len(page.sources) == 2
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in page.sources)
    root = inputs["results"].parents[1]
    for link in page.links:
        assert link[1:] in page.ids if link.startswith("#") else (root / link).exists(), link
    assert "figures/m/figure_3_ppo.pdf" in page.links
    assert sorted(path.name for path in root.iterdir() if path.is_file()) == [
        *("0.json", "1.json", "2.json", "broken.json", "report.html")
    ]


def test_the_section_about_data_tells_of_every_row(inputs, tmp_path):
    paths = {name: tmp_path / f"{name}.csv" for name in report.DataTables._fields}
    counts = [("preferences", "", "read", "used", 1200), ("preferences", "", "read", "roles", 7)]
    counts += [("preferences", "m", "offline", "used", 1100), ("preferences", "m", "offline", "cut", 12)]
    columns = ["data_set", "model", "step", "reason", "rows"]
    pd.DataFrame(counts, columns=columns).to_csv(paths["counts"], index=False)
    source = {"data_set": "preferences", "path": "a/b", "split": None, "revision": "abc", "rows": 1207, "used": 1200}
    pd.DataFrame([source | {"sha256": "f" * 64}]).to_csv(paths["sources"], index=False)
    overlap = {"data_set": "eval_prompts", "other": "final_prompts", "rows": 805, "same_prompt": 73}
    other = {**overlap, "other": "sft", "same_prompt": 0, "same_opening": 0}
    pd.DataFrame([overlap | {"same_opening": 129}, other]).to_csv(paths["overlaps"], index=False)
    report.write_report(tmp_path / "r.html", report.Contents(**inputs, data=report.DataTables(**paths)))
    page = Page((tmp_path / "r.html").read_text())
    assert "preferences – read 1,200 0 roles 7" in page.text
    assert "preferences m offline 1,100 12 –" in page.text
    assert "a/b – abc ffffffffffffffff…" in page.text
    assert "Of 805 prompts of eval_prompts, 73 are prompts of final_prompts too, and 129 begin with" in page.text
    assert "of sft too" not in page.text
    assert page.open == []


def test_the_exact_bandit_has_a_section_with_its_claims(inputs, tmp_path):
    law = {"objective": "rda", "variant": "posterior", "coverage": "uniform", "exponent": 2.2, "low": 2.1, "high": 2.3}
    pd.DataFrame([law | {"tau": 0.5, "steps": 44.4}, law | {"tau": 1.0, "steps": 11}]).to_csv(tmp_path / "law.csv")
    claim = {"claim": "one & only", "model": "bandit", "verdict": "holds", "rule": "tv < 0.001"}
    claims = [claim | {"statistic": 0.00098, "low": 0.0009, "high": 0.00098}]
    pd.DataFrame(claims).to_csv(tmp_path / "claims.csv")
    bandit = report.ExactBandit(inputs["figures"][0], tmp_path / "law.csv", tmp_path / "claims.csv")
    report.write_report(tmp_path / "report.html", report.Contents(**inputs, bandit=bandit))
    shown = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert {"#known"} <= set(shown.links)
    assert "one & only holds 0.00098 0.0009 to 0.00098 tv < 0.001" in shown.text
    assert "τ = 1.0 τ = 0.5 p RDA reference uniform 11 44 2.20 2.10 to 2.30" in shown.text
    assert "law.csv" in shown.links


def test_the_distance_to_the_target_has_a_section_with_its_claims(inputs, tmp_path):
    row = {"model": "menagerie", "tau": 0.1, "low": 7.31, "high": 10.28, "log_z": 8.87, "ess": 4.7, "n_low_ess": 17}
    row |= {"prompts": 24, "reward": 0.01, "kl_to_reference": 0.5} | dict.fromkeys(("fall", "fall_low", "fall_high"), 2)
    ends = (("sft", 0, 8.82, False), ("dpo", 0, 8.82, True), ("dpo", 250, 7.0, True))
    keys = ("run", "step", "kl_to_target", "own_tau")
    pd.DataFrame([row | {"seed": 0} | dict(zip(keys, end, strict=True)) for end in ends]).to_csv(
        tmp_path / "target.csv"
    )
    claim = {"claim": "nearer", "model": "menagerie", "verdict": "holds", "rule": "fall > 0"}
    pd.DataFrame([claim | {"statistic": 1.82, "low": 0.48, "high": 3.31}]).to_csv(tmp_path / "claims.csv")
    target = report.Target(tmp_path / "target.csv", tmp_path / "claims.csv")
    report.write_report(tmp_path / "report.html", report.Contents(**inputs, target=target))
    shown = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert {"#target"} <= set(shown.links)
    assert "nearer holds 1.82 0.48 to 3.31 fall > 0" in shown.text
    assert "DPO, seed 0 0.1 its own 7.00 7.31 to 10.28 2.00 2.00 to 2.00 0.50 0.01 8.87 5 17 of 24" in shown.text
    assert "SFT model 0.1 8.82" in shown.text
    assert "DPO, seed 0 0.1 its own 8.82" not in shown.text  # an earlier checkpoint
    assert "target.csv" in shown.links


def test_without_the_exact_bandit_and_the_target_there_are_no_sections(page):
    assert "Where everything is known" not in page.text
    assert {"#known", "#target"}.isdisjoint(page.links)


def test_predictions_have_a_section_of_their_own(inputs, tmp_path):
    files = [tmp_path / f"{name}_dpo.png" for name in ("token_prediction", "prediction")]
    draw_token_prediction(*synthetic.token_prediction("dpo"), files[0], model="menagerie", run="dpo", runs=RUNS)
    draw_prediction(*synthetic.prediction("dpo"), files[1], model="menagerie", run="dpo", runs=RUNS)
    contents = inputs | {"figures": [*inputs["figures"], *files]}
    report.write_report(tmp_path / "report.html", report.Contents(**contents))
    page = (tmp_path / "report.html").read_text()
    section = page.partition('<h2 id="prediction">')[2].partition("<h2 ")[0]
    assert section.count("<img") == 2
    assert section.index("Predictive check. DPO") < section.index("Token by token. DPO")
    assert "Predictive check" not in page.partition('<h2 id="figures">')[2].partition("<h2 ")[0]


def test_why_both_fall_has_a_section_with_its_figures_and_the_check(inputs, tmp_path):
    tables = report.Displacement(tmp_path / "displacement.csv", tmp_path / "check.csv")
    for table, path in zip(synthetic.displacement(), tables, strict=True):
        table.to_csv(path, index=False)
    figure = tmp_path / "displacement_dpo.png"
    draw_displacement(synthetic.displacement()[0], figure, model="menagerie", run="dpo", runs=RUNS)
    contents = inputs | {"figures": [*inputs["figures"], figure], "records": []}
    report.write_report(tmp_path / "report.html", report.Contents(**contents, displacement=tables))
    shown = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert {"#both-fall", "displacement.csv", "check.csv"} <= set(shown.links)
    assert shown.open == []
    assert len(shown.sources) == 3
    assert "chosen fell 600 cases, 60 mini-batches, 2 seeds 0 0 486 114 19.0 81.0 −62.0 −69.0 to −54.0 –" in shown.text
    assert "So both fall." in shown.text
    assert not re.search(r"\bnan\b", shown.text)


def test_without_probed_pairs_nothing_is_said_of_both(page, inputs, tmp_path):
    assert "Why do both fall?" not in page.text
    tables = report.Displacement(tmp_path / "displacement.csv", tmp_path / "check.csv")
    for table, path in zip(synthetic.displacement(), tables, strict=True):
        table.head(0).to_csv(path, index=False)
    report.write_report(tmp_path / "report.html", report.Contents(**inputs, displacement=tables))
    assert "Why do both fall?" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_headline_states_sft_dpo_and_ppo_with_intervals(page, inputs):
    results = pd.read_csv(inputs["results"]).set_index("run")
    base, dpo = results.loc["base"], results.loc["dpo"]
    assert f"SFT over base {100 - base['final']:.1f} % 95 % interval {100 - base['final_high']:.1f}" in page.text
    assert f"to {100 - base['final_low']:.1f}: above 50 %." in page.text
    assert (
        f"DPO over SFT {dpo['final']:.1f} % 95 % interval {dpo['final_low']:.1f} to {dpo['final_high']:.1f}"
        in page.text
    )
    assert "PPO over SFT" in page.text


def test_an_interval_with_50_in_it_is_said_so(inputs, tmp_path):
    results = pd.read_csv(inputs["results"])
    results.loc[results["run"] == "dpo", ["final", "final_low"]] = 52, 49
    results.loc[results["run"] == "ppo", ["final", "final_low", "final_high"]] = 45, 41, 48
    results.to_csv(tmp_path / "results.csv")
    changed = report.Contents(**inputs | {"results": tmp_path / "results.csv", "records": []})
    report.write_report(tmp_path / "report.html", changed)
    text = Page((tmp_path / "report.html").read_text()).text
    assert "does not exclude 50 %." in text
    assert "41.0 to 48.0: below 50 %." in text
    assert "No provenance records" in text


def test_results_table_names_every_run_with_its_difference(page, inputs):
    results = pd.read_csv(inputs["results"]).set_index("run")
    ipo = results.loc["ipo"]
    row = f"IPO 1 seed {ipo['final']:.1f} {ipo['final_low']:.1f} to {ipo['final_high']:.1f}"
    assert row in page.text
    assert f"{ipo['difference']:+.1f}" in page.text
    for label in ("base model, no SFT", "cDPO: POS", "hPPO: t₃", "DPO: no NEG"):
        assert label in page.text, label
    assert "nan" not in page.text


def report_of(inputs, folder, outcomes, runs):
    """The page of an experiment with these outcomes, as HTML."""
    paths = {"results": folder / "results.csv", "win_rates": folder / "win_rates.csv"}
    stats.write_csv(stats.win_rates(outcomes, "gold"), paths["win_rates"])
    stats.write_csv(stats.results_table(outcomes, runs), paths["results"])
    changed = inputs | paths | {"runs": runs, "figures": [], "records": []}
    report.write_report(folder / "report.html", report.Contents(**changed))
    return (folder / "report.html").read_text(encoding="utf-8")


def test_one_seed_a_side_yields_no_p_and_nothing_in_bold(inputs, tmp_path):
    """Two trainings 7 points apart, as two seeds of one method were in the demo."""
    outcomes = synthetic.trainings({"dpo": [0.60], "cdpo": [0.67]})
    text = report_of(inputs, tmp_path, outcomes, {name: RUNS[name] for name in ("dpo", "cdpo")})
    assert pd.read_csv(tmp_path / "results.csv")["difference"].iloc[-1] == pytest.approx(7, abs=0.3)
    assert "<strong>" not in text
    page = Page(text)
    assert "these two models" in page.text
    assert not re.search(r", p (<|0|1)", page.text)
    assert "finds in four cases of five" not in page.text


def test_the_judge_has_a_section(inputs, tmp_path):
    """A judge with half a taste for places, gaps in its verdicts, and a run that it always prefers."""
    outcomes = synthetic.trainings({"dpo": [0.6], "cdpo": [1.0]}, n=200)
    outcomes.loc[outcomes["id"] == "p0", ["preference", "preference_swapped", "outcome"]] = np.nan
    outcomes.loc[outcomes["id"].isin([f"p{i}" for i in range(1, 101)]), ["preference", "preference_swapped"]] = 0.0, 1.0
    page = Page(report_of(inputs, tmp_path, outcomes, {name: RUNS[name] for name in ("dpo", "cdpo")}))
    rates = pd.read_csv(tmp_path / "win_rates.csv")
    consistency, first = rates["order_consistency"], rates["first_slot"]
    row = f"gold menagerie 4 0.50 % {consistency.mean():.1f} at least {consistency.min():.1f}"
    assert f"{row} {first.mean():.1f} {first.min():.1f} to {first.max():.1f} 1 of 4" in page.text
    assert 70 < first.mean() < 80
    assert "Its report card" not in page.text
    controlled = pd.read_csv(tmp_path / "results.csv").set_index("run")["length_controlled"]
    assert f"{controlled['dpo']:.1f} +5 characters" in page.text
    assert "100.0 † +5 characters" in page.text.replace("100.0†", "100.0 †")


def test_the_judges_report_card_shows_what_was_measured(inputs, tmp_path):
    rows = [("accuracy", 0.8123, 0.79, 0.83, 1200), ("self_consistency", np.nan, np.nan, np.nan, 0)]
    card = tmp_path / "judge_card.csv"
    pd.DataFrame(rows, columns=["mark", "value", "low", "high", "n"]).to_csv(card, index=False)
    report.write_report(tmp_path / "report.html", report.Contents(**inputs, judge_card=card))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "accuracy 0.812 0.790 to 0.830 1,200" in page.text
    assert "self consistency" not in page.text
    assert "judge_card.csv" in page.links


def test_five_seeds_a_side_have_p_and_the_parents_spread_beside_it(inputs, tmp_path):
    outcomes = synthetic.trainings({"dpo": [0.58, 0.6, 0.61, 0.59, 0.62], "cdpo": [0.75, 0.74, 0.77, 0.76, 0.75]})
    text = report_of(inputs, tmp_path, outcomes, {name: RUNS[name] for name in ("dpo", "cdpo")})
    row = pd.read_csv(tmp_path / "results.csv").set_index("run").loc["cdpo"]
    assert f"<strong>{row['difference']:+.1f}</strong>" in text
    assert f"p {row['p_holm']:.3f} {row['parent_std']:.1f} " in Page(text).text
    assert "finds in four cases of five" in Page(text).text


def test_runs_on_other_checkpoints_than_their_parent_are_named(inputs, tmp_path):
    outcomes = synthetic.outcomes()
    late = RUNS | {"dpo_no_pos": RUNS["dpo_no_pos"] | {"init_step": 175}}
    kept = outcomes[~outcomes["run"].eq("cdpo") | outcomes["step"].isin([0, 125, 250])]
    kept = kept[~kept["run"].eq("dpo_no_pos") | kept["step"].ge(175)]
    text = Page(report_of(inputs, tmp_path, kept, late)).text
    assert "so that best win rates do not compare: cDPO: POS → NEG, steps 125–375." in text


def test_time_and_memory_of_every_stage(page):
    assert "3 jobs, 1 h 02 min of work" in page.text
    assert "at most 902 MB" in page.text
    assert "train_sft 1 1 min 00 s 1 min 00 s 900" in page.text
    assert "train_offline 2 1 h 01 min 1 h 00 min 902" in page.text
    assert "abc123" in page.text
    assert "last finished 2026-11-21 03:00:00" in page.text


def test_captions_and_configuration_are_text(page):
    assert "Reproduces Figure 3 of version 1 of the paper" in page.text
    assert "thin lines as logged" in page.text
    assert "<script>alert(1)</script>" in page.text  # escaped on the page, hence text for the parser
    assert "beta: 0.1" in page.text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.6, "1 min 00 s"), (3599.8, "1 h 00 min"), (61, "1 min 01 s")]
)
def test_durations(seconds, text):
    assert report._duration(seconds) == text


def test_figures_come_in_the_order_of_their_numbers():
    names = ["b/figure_1.png", "a/training_dpo.png", "a/figure_10_x.png", "a/figure_2_ppo.png", "a/figure_2_dpo.png"]
    ordered = sorted(map(pathlib.Path, names), key=report._by_number)
    assert [str(path) for path in ordered] == [
        *("a/figure_2_dpo.png", "a/figure_2_ppo.png", "a/figure_10_x.png", "a/training_dpo.png", "b/figure_1.png")
    ]


def test_bad_inputs_name_the_file_and_leave_the_report(inputs, tmp_path):
    output = tmp_path / "report.html"
    output.write_text("good")
    (tmp_path / "empty.csv").write_text("model,run\n")
    (tmp_path / "figure.png").write_text("no image")
    cases = {
        "results": tmp_path / "none.csv",
        "win_rates": tmp_path / "empty.csv",
        "figures": [tmp_path / "figure.png"],
    }
    for key, value in cases.items():
        path = value[0] if isinstance(value, list) else value
        with pytest.raises(InputError, match=re.escape(str(path))):
            report.write_report(output, report.Contents(**inputs | {key: value}))
    assert output.read_text() == "good"

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import synthetic
from PIL import Image
from po_dynamics.dynamics.observables.resolution import resolution
from po_dynamics.errors import InputError
from po_dynamics.figures import style
from po_dynamics.figures.plots import alignment
from po_dynamics.figures.plots.advantages import draw_advantages
from po_dynamics.figures.plots.alignment import draw_alignment
from po_dynamics.figures.plots.checks.prediction import draw_prediction
from po_dynamics.figures.plots.checks.token_prediction import draw_token_prediction
from po_dynamics.figures.plots.displacement import draw_displacement
from po_dynamics.figures.plots.training import draw_training
from po_dynamics.figures.plots.win_rates import draw_win_rates

RUNS = synthetic.RUNS
KNOWN = resolution(pd.concat(map(synthetic.dynamics, ("dpo", "ppo"))))


def draw_all(folder):
    draw_alignment(synthetic.dynamics("dpo"), KNOWN, folder / "1.png", model="menagerie", run="dpo", runs=RUNS)
    draw_alignment(synthetic.dynamics("ppo"), KNOWN, folder / "2.png", model="menagerie", run="ppo", runs=RUNS)
    draw_advantages(synthetic.advantages(), folder / "3.png", model="menagerie", run="ppo", runs=RUNS)
    draw_win_rates(synthetic.win_rates(), folder / "4.png", model="menagerie", runs=RUNS)
    draw_training(synthetic.training(), folder / "5.png", model="menagerie", run="dpo", runs=RUNS)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    draw_all(folder)
    return folder


@pytest.fixture
def kept(monkeypatch):
    """The figure as drawn, instead of files."""
    saved = []
    monkeypatch.setattr(style, "save", lambda figure, *rest: saved.append((figure, *rest)))
    yield saved
    plt.close("all")


def test_predictive_check_shows_every_pair_and_its_correlation(kept, tmp_path):
    table, correlations = synthetic.prediction()
    draw_prediction(table, correlations, tmp_path / "x.png", model="menagerie", run="dpo", runs=RUNS)
    figure, _, _, text = kept[0]
    assert [sum(len(dots.get_offsets()) for dots in ax.collections) for ax in figure.axes[:2]] == [16, 16]
    assert "16 pairs of checkpoints" in text
    assert "is 0.81 (0.71 to 0.91) for G, 0.78 for the step number alone, −0.60 for Ση alone (same 16 pairs)" in text
    assert "It is not known to beat the step number alone: difference 0.03 (−0.07 to 0.13)" in text
    assert "it says more than Ση alone" in text
    assert "Each predicted nat was 1.10 (1.00 to 1.20) nats" in text
    assert "no AdamW-aware prediction for 8 pairs without optimizer state" in text
    assert "two trainings hardly show" in text
    assert len(figure.axes[1].lines) == len(figure.axes[0].lines) + 1  # the diagonal, where the axes are both in nats
    table["predicted_adamw"] = np.nan
    draw_prediction(table, correlations, tmp_path / "x.png", model="menagerie", run="dpo", runs=RUNS)
    assert len(kept[1][0].axes) == 2  # one panel and the colour bar


def test_why_both_fall_draws_every_quantity_of_each_seed(kept, tmp_path):
    table, _ = synthetic.displacement()
    others = [table.assign(value=99, final_set="train"), table.assign(value=99, run="ipo")]
    shuffled = pd.concat([table, *others]).sample(frac=1, random_state=0)
    draw_displacement(shuffled, tmp_path / "x.png", model="menagerie", run="dpo", runs=RUNS)
    figure, _, _, text = kept[0]
    drawn = [[text.get_text().replace("\n", " ") for text in ax.texts] for ax in figure.axes]
    assert drawn[0] == drawn[1] == ["rejected", "chosen", "likeliest token", "own final answers"]
    assert [len(ax.collections) for ax in figure.axes] == [8, 8, 4, 4, 4, 2]  # a band per line and seed
    fell = [line for line in figure.axes[0].lines if line.get_linewidth() > 1 and line.get_ydata()[-1] < -3]
    assert np.allclose(fell[0].get_ydata(), -4 * np.array(synthetic.STEPS["offline"]) / 250)
    assert "240 preference pairs" in text
    assert "60 mini-batches" in text


def test_what_was_not_measured_is_said_in_its_panel(kept, tmp_path):
    table, _ = synthetic.displacement(seeds=(3,))
    shown = table[table["quantity"].str.contains("_per_|chosen_fell")]
    draw_displacement(shown, tmp_path / "x.png", model="menagerie", run="dpo", runs=RUNS)
    texts = [[text.get_text() for text in ax.texts] for ax in kept[0][0].axes]
    assert [texts[i] for i in (2, 3, 4, 5)] == [["not measured"], ["chosen fell"], ["not measured"], ["not measured"]]
    with pytest.raises(InputError, match="no row with run = ipo; seen: dpo"):
        draw_displacement(shown, tmp_path / "x.png", model="menagerie", run="ipo", runs=RUNS)


def test_tokens_by_prediction_of_both_sides_with_what_they_are_worth(kept, tmp_path):
    def draw(*arguments):
        bins, statistics = synthetic.token_prediction(*arguments)
        run = arguments[0]
        draw_token_prediction(bins, statistics, tmp_path / "x.png", model="menagerie", run=run, runs=RUNS)
        return kept[-1]

    figure, _, _, text = draw("dpo")
    assert [ax.get_title(loc="left") for ax in figure.axes] == [
        "(a) final responses",
        "(b) pairs, by sign",
        "(c) pairs, by weight",
    ]
    assert [len(ax.containers) for ax in figure.axes] == [1, 2, 3]
    assert (
        "Final responses D′ (12,345 tokens over all intervals and seeds, 240 prompts): slope 0.80 (0.78 to 0.82)"
        in text
    )
    assert "Training pairs D, rejected (12,345 tokens over all intervals and seeds, 240 pairs)" in text
    assert "right for 66.0%, more than the 60.0%" in text
    assert "the trainings are held fixed" in text
    assert "pull on itself" in text
    figure, _, _, text = draw("ppo")
    assert len(figure.axes) == 1
    assert "pull on itself" not in text
    figure, _, _, text = draw("ppo", "predicted")  # probed without optimizer state
    assert "slope" not in text
    assert "arbitrary unit" in figure.axes[0].get_xlabel()
    assert len(figure.axes[0].lines) == 3  # two axes and the dots, no diagonal


def caption(path):
    with Image.open(path) as image:
        return image.text["Description"]


def test_figures_are_written_twice_alike(drawn, tmp_path):
    assert {path.name for path in drawn.iterdir()} == {f"{i}.{kind}" for i in range(1, 6) for kind in ("pdf", "png")}
    draw_alignment(synthetic.dynamics("dpo"), KNOWN, tmp_path / "1.png", model="menagerie", run="dpo", runs=RUNS)
    draw_training(synthetic.training(), tmp_path / "5.png", model="menagerie", run="dpo", runs=RUNS)
    for name in ("1.pdf", "1.png", "5.pdf", "5.png"):
        assert (tmp_path / name).read_bytes() == (drawn / name).read_bytes(), name


def test_png_resolution_title_and_caption(drawn):
    for number in range(1, 6):
        with Image.open(drawn / f"{number}.png") as image:
            assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
            assert image.text["Title"]
            assert 700 < image.width < 1600
            shades = np.asarray(image.convert("L"))
            assert (shades < 128).mean() > 0.005
            assert shades[:, [0, -1]].min() > 250  # nothing is cut off at the sides


def test_captions_say_n_seeds_steps_intervals_and_what_would_contradict(drawn):
    for number in (1, 2):
        text = caption(drawn / f"{number}.png")
        for part in (
            "9 checkpoints",
            "2 seeds (0, 1)",
            "95 %",
            "480 samples of D and 360 of D′",
            "Hollow points: sign not known",
            "TOT: known at",
            f"Figure {number} of version 1",
        ):
            assert part in text, part
    assert "900 to 901 tokens" in caption(drawn / "3.png")
    assert "400 prompts" in caption(drawn / "4.png")
    assert all("contradict" in caption(drawn / f"{i}.png") for i in range(1, 5))


def test_alignment_draws_the_means_and_every_interval(kept, tmp_path):
    table = synthetic.dynamics("dpo")
    others = [table.assign(G=99, **change) for change in ({"run": "x"}, {"final_set": "train"}, {"filtered": False})]
    draw_alignment(
        pd.concat([table, *others, table.assign(G=99, segment="bottom")]).sample(frac=1, random_state=0),
        KNOWN,
        tmp_path / "x.png",
        model="menagerie",
        run="dpo",
        runs=RUNS,
    )
    axes = kept[0][0].axes
    assert [len(ax.collections) for ax in axes] == [2, 4, 6]  # a band per component and seed
    assert all(ax.get_yscale() == "symlog" for ax in axes)
    means = table[table["component"] == "POS"].groupby("step")["G"].mean()
    thick = [line for line in axes[1].lines if line.get_linewidth() > 1]
    assert np.allclose(thick[0].get_ydata(), means)
    assert thick[0].get_xdata().tolist() == means.index.tolist()
    assert {text.get_text() for ax in axes for text in ax.texts} == {"TOT", "POS", "NEG", "TOP", "MID", "BOT"}


def test_points_are_hollow_where_a_seed_does_not_know_the_sign_or_seeds_disagree(kept, tmp_path):
    table = synthetic.dynamics("ppo").assign(G=1.0, G_low=0.5, G_high=1.5, resolved=True)
    step, seed = table["step"], table["seed"]
    table.loc[(step == 12) & (seed == 1), "resolved"] = False
    table.loc[(step == 30) & (seed == 0), ["G", "G_low", "G_high"]] = [-1.0, -1.5, -0.5]
    draw_alignment(table, KNOWN, tmp_path / "x.png", model="menagerie", run="ppo", runs=RUNS)
    hollow = [line for line in kept[0][0].axes[0].lines if line.get_markerfacecolor() == "white"]
    assert [list(line.get_xdata()) for line in hollow] == [[12, 30]]


def test_groups_are_not_drawn_where_all_weights_are_equal(kept, tmp_path):
    table = synthetic.dynamics("dpo")
    draw_alignment(table, KNOWN, tmp_path / "x.png", model="menagerie", run="dpo", runs=RUNS)
    figure, _, _, text = kept[0]
    assert all(line.get_xdata()[0] == 0 for ax in figure.axes[:2] for line in ax.lines if len(line.get_xdata()) > 2)
    groups = [line for line in figure.axes[2].lines if line.get_linestyle() != "None" and len(line.get_xdata()) > 2]
    assert [list(line.get_xdata()) for line in groups] == [synthetic.STEPS["offline"][1:]] * 9  # means and two seeds
    assert "(not at step 0, where all weights are equal)" in text
    draw_alignment(table[table["step"] == 0], KNOWN, tmp_path / "x.png", model="menagerie", run="dpo", runs=RUNS)
    assert {text.get_text() for text in kept[1][0].axes[2].texts} == set()
    draw_alignment(synthetic.dynamics("ppo"), KNOWN, tmp_path / "x.png", model="menagerie", run="ppo", runs=RUNS)
    assert "not at step" not in kept[2][3]


def test_figure_3_leads_with_the_advantage_that_the_loss_uses(kept, tmp_path):
    table = synthetic.advantages()
    draw_advantages(table, tmp_path / "x.png", model="menagerie", run="ppo", runs=RUNS)
    figure, _, _, text = kept[0]
    for ax, column in zip(figure.axes, ("advantage", "raw_advantage"), strict=True):
        means = table[table["group"] == "TOP"].groupby("step")[column].mean()
        assert any(np.array_equal(line.get_ydata(), means) for line in ax.lines)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["(a) as the loss uses it", "(b) before whitening"]
    assert "its claim is about this panel" in text


def panels(figure):
    return {ax.get_title(loc="left"): {text.get_text().replace("\xa0", " ") for text in ax.texts} for ax in figure.axes}


def test_win_rate_panels_group_by_objective_with_the_parent_in_each(kept, tmp_path):
    draw_win_rates(synthetic.win_rates(), tmp_path / "x.png", model="menagerie", runs=RUNS)
    assert panels(kept[0][0]) == {
        "(a) DPO ablations": {"no NEG before\nstep 75", "no POS after\nstep 175", "DPO"},
        "(b) PPO ablations": {"no TOP", "no MID", "PPO"},
        "(c) cDPO: POS first, NEG later": {"POS → NEG,\nsteps 125–375", "DPO"},
        "(d) cPPO: TOP tokens scaled": {"TOP × 0.3", "TOP × 0.7", "PPO"},
        "(e) cPPO: MID tokens scaled": {"MID × 0.5", "PPO"},
        "(f) hPPO: NEG weakened in waves": {"t₃ = 5,\nτ = 0.05", "PPO"},
        "(g) IPO": {"IPO", "DPO"},
    }


@pytest.mark.parametrize(
    ("names", "titles"),
    [
        (["dpo"], ["DPO"]),
        (["dpo", "ppo"], ["(a) DPO", "(b) PPO"]),
        (["ppo", "hppo_t3-5_tau-0.05", "dpo"], ["(a) hPPO: NEG weakened in waves", "(b) DPO"]),
        (["cdpo"], ["cDPO: POS first, NEG later"]),
    ],
)
def test_win_rate_panels_of_small_experiments(kept, tmp_path, names, titles):
    runs = {name: RUNS[name] for name in names}
    draw_win_rates(synthetic.win_rates(runs=runs), tmp_path / "x.png", model="menagerie", runs=runs)
    assert list(panels(kept[0][0])) == titles


def test_linear_threshold_keeps_small_values_visible():
    assert alignment._linear_threshold(pd.Series([0.0, 0.03, -0.05, 4])) == 0.01
    assert alignment._linear_threshold(pd.Series([1e-12, 1e-12, 1.0])) == 1e-5
    assert alignment._linear_threshold(pd.Series([0.0, 0.0])) == 1


def test_training_curves_show_what_varies(kept, tmp_path):
    curves = synthetic.training("online")
    curves[0].loc[3, "entropy"] = np.nan
    draw_training(curves, tmp_path / "x.png", model="menagerie", run="ppo", runs=RUNS)
    titles = [ax.get_title(loc="left") for ax in kept[0][0].axes]
    assert titles == [
        *("reward", "KL, nats/response", "entropy, nats/token", "policy loss", "value loss", "share clipped"),
        *("grad norm, policy", "my own"),
    ]
    kl = kept[0][0].axes[1]
    thick = [line for line in kl.lines if line.get_linewidth() > 1]
    assert [line.get_label() for line in thick] == ["k1", "k3"]
    mean = sum(table["kl_per_response"] for table in curves.values()) / 2
    assert thick[0].get_ydata() == pytest.approx(mean.rolling(2, center=True, min_periods=1).mean())


def test_a_log_of_one_step_is_drawn(kept, tmp_path):
    curves = {0: synthetic.training()[0][:1]}
    draw_training(curves, tmp_path / "x.png", model="menagerie", run="dpo", runs=RUNS)
    assert [ax.get_title(loc="left") for ax in kept[0][0].axes][:2] == ["loss", "implicit reward"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda out: draw_alignment(synthetic.dynamics(), KNOWN, out, model="x", run="dpo", runs=RUNS),
            "model = x; seen: menagerie",
        ),
        (
            lambda out: draw_alignment(
                synthetic.dynamics(), KNOWN, out, model="menagerie", run="dpo", runs=RUNS, final_set="train"
            ),
            "final_set = train; seen: heldout",
        ),
        (
            lambda out: draw_advantages(synthetic.dynamics()[["model"]], out, model="menagerie", run="dpo", runs=RUNS),
            "no column run",
        ),
        (
            lambda out: draw_win_rates(synthetic.win_rates(), out, model="menagerie", runs={}),
            "no run of menagerie",
        ),
        (
            lambda out: draw_training(
                {0: pd.DataFrame({"step": [1, 2], "loss": [1.0, 1.0]})}, out, model="m", run="dpo", runs=RUNS
            ),
            "no quantity that varies",
        ),
    ],
)
def test_tables_without_what_is_asked_for(tmp_path, call, message):
    with pytest.raises(InputError, match=re.escape(message)):
        call(tmp_path / "x.png")
    assert not list(tmp_path.iterdir())

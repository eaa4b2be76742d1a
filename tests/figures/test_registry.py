"""The list of figures: which runs have which, and how each is drawn."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import synthetic
from po_dynamics.dynamics.observables.resolution import resolution
from po_dynamics.figures import registry
from po_dynamics.figures.registry import FIGURES, Drawing, Figure, drawings


def run(name, family, *final_sets, model="m", target=False):
    return SimpleNamespace(name=name, model=model, family=family, final_sets=final_sets, target=target)


def test_each_run_has_the_figures_that_concern_it(monkeypatch):
    figures = (
        Figure("all_{run}", "m:f"),
        Figure("one", "m:f"),
        Figure("probed_{run}", "m:f", final_set="heldout"),
        Figure("offline_{run}", "m:f", families=("offline",), final_set="train"),
        Figure("online_{run}", "m:f", families=("online",)),
        Figure("target", "m:f", target=True),
    )
    monkeypatch.setattr(registry, "FIGURES", figures)
    runs = [
        run("dpo", "offline", "heldout", "train"),
        run("ppo", "online", "heldout", target=True),
        run("ipo", "offline"),
        run("dpo", "offline", "heldout", model="n"),
    ]
    found = drawings(runs)
    assert {file for model, file in found if model == "m"} == {
        *("all_dpo", "all_ppo", "all_ipo", "one", "probed_dpo", "probed_ppo", "offline_dpo", "online_ppo"),
        "target",
    }
    assert [file for model, file in found if model == "n"] == ["all_dpo", "one", "probed_dpo"]
    assert all((drawing.model, drawing.file) == key for key, drawing in found.items())


def test_the_papers_figures_are_of_the_runs_that_they_are_about():
    found = drawings([run("dpo", "offline", "heldout", "train"), run("ppo", "online")])
    papers = {file for _, file in found if file.startswith("figure_")}
    assert papers == {"figure_1_dpo", "figure_4", "figure_7_dpo"}
    found = drawings([run("dpo", "offline"), run("ppo", "online", "heldout")])
    papers = {file for _, file in found if file.startswith("figure_")}
    assert papers == {"figure_2_ppo", "figure_3_ppo", "figure_4"}


def function(drawing):
    module, _, name = drawing.function.partition(":")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.file)
def test_a_figures_function_takes_its_tables_and_arguments_by_name(figure):
    drawing = Drawing(figure, "m", "dpo" if figure.per_run else None)
    tables = dict.fromkeys(Path(table).stem for table in (*figure.tables, *figure.of_seeds))
    assert len(tables) > 0
    signature = inspect.signature(function(drawing))
    signature.bind(**tables, output=None, model="m", runs=None, **drawing.arguments)


def test_a_drawing_is_made_of_tables_by_name(tmp_path):
    found = drawings([run("dpo", "offline", "heldout", model="menagerie")])
    tables = {
        "figure_1_dpo": {"dynamics": synthetic.dynamics(), "resolution": resolution(synthetic.dynamics())},
        "figure_4": {"win_rates": synthetic.win_rates()},
        "displacement_dpo": {"displacement": synthetic.displacement()[0]},
        "training_dpo": {"training": synthetic.training()},
    }
    for file, given in tables.items():
        drawing, png = found["menagerie", file], tmp_path / f"{file}.png"
        function(drawing)(**given, output=png, model=drawing.model, runs=synthetic.RUNS, **drawing.arguments)
        assert png.stat().st_size > 5_000


def test_drawing_needs_no_torch():
    modules = sorted({Drawing(figure, "m").function.partition(":")[0] for figure in FIGURES})
    code = f"import sys, po_dynamics.figures.report.page, {', '.join(modules)}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

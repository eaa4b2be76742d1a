"""The list of figures: which runs have which, and how each is drawn."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import synthetic
from po_dynamics.figures.registry import FIGURES, Drawing, drawings


def run(name, family, probe=True, model="m"):
    return SimpleNamespace(name=name, model=model, family=family, probe=probe)


def test_each_run_has_the_figures_that_concern_it():
    runs = [
        run("dpo", "offline"),
        run("ppo", "online"),
        run("ipo", "offline", probe=False),
        run("dpo", "offline", model="n"),
    ]
    found = drawings(runs, {"offline": ["heldout", "train"], "online": ["heldout"]})
    assert {file for model, file in found if model == "m"} == {
        *("figure_1_dpo", "figure_2_ppo", "figure_3_ppo", "figure_4", "figure_7_dpo", "prediction_dpo"),
        *("prediction_ppo", "training_dpo", "training_ppo", "training_ipo"),
    }
    assert [file for model, file in found if model == "n"] == [
        *("figure_1_dpo", "figure_4", "figure_7_dpo", "prediction_dpo", "training_dpo")
    ]
    assert all((drawing.model, drawing.file) == key for key, drawing in found.items())
    held_out_only = drawings(runs, {"offline": ["heldout"], "online": ["heldout"]})
    assert {file for _, file in found} - {file for _, file in held_out_only} == {"figure_7_dpo"}


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
    found = drawings([run("dpo", "offline", model="menagerie")], {"offline": ["heldout"]})
    tables = {
        "figure_1_dpo": {"dynamics": synthetic.dynamics()},
        "figure_4": {"win_rates": synthetic.win_rates()},
        "training_dpo": {"training": synthetic.training()},
    }
    for file, given in tables.items():
        drawing, png = found["menagerie", file], tmp_path / f"{file}.png"
        function(drawing)(**given, output=png, model=drawing.model, runs=synthetic.RUNS, **drawing.arguments)
        assert png.stat().st_size > 5_000


def test_drawing_needs_no_torch():
    modules = sorted({Drawing(figure, "m").function.partition(":")[0] for figure in FIGURES})
    code = f"import sys, po_dynamics.figures.report, {', '.join(modules)}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

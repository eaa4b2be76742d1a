"""The list of figures: which runs have which, and one script that draws any of them."""

import importlib
import inspect
import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import synthetic
from po_dynamics.figures.registry import FIGURES, Drawing, drawings

SCRIPT = Path(__file__).parents[2] / "workflow" / "scripts" / "draw_figure.py"


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


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.file)
def test_a_figures_function_takes_its_tables_and_arguments_by_name(figure):
    call = Drawing(figure, "m", "dpo" if figure.per_run else None).call
    function = getattr(importlib.import_module(call["module"]), call["function"])
    tables = [Path(table).stem for table in (*figure.tables, *figure.of_seeds)]
    assert len(tables) > 0
    inspect.signature(function).bind(**dict.fromkeys(tables), output=None, runs=None, **call["arguments"])


class Named(dict):
    """As Snakemake's lists of named files: `files.name` too."""

    __getattr__ = dict.__getitem__


@pytest.fixture
def draw(tmp_path):
    """Runs the script for a drawing with these tables; returns the PNG."""

    def drawn(drawing, tables=(), of_seeds=(), seeds=()):
        png = tmp_path / "figures" / f"{drawing.file}.png"
        snakemake = SimpleNamespace(
            rule="draw_figure",
            threads=1,
            log=[str(tmp_path / "log")],
            wildcards={"model": drawing.model},
            input=Named(tables=list(map(str, tables)), of_seeds=list(map(str, of_seeds))),
            output=Named(figure=str(png)),
            params=SimpleNamespace(call=json.loads(json.dumps(drawing.call)), runs=synthetic.RUNS, seeds=list(seeds)),
        )
        runpy.run_path(str(SCRIPT), init_globals={"snakemake": snakemake})
        return png

    return drawn


def test_the_script_draws_figures_of_runs_of_models_and_of_seeds(draw, tmp_path):
    found = drawings([run("dpo", "offline", model="menagerie")], {"offline": ["heldout"]})
    dynamics, rates = tmp_path / "dynamics.parquet", tmp_path / "win_rates.csv"
    synthetic.dynamics().to_parquet(dynamics)
    synthetic.win_rates().to_csv(rates, index=False)
    curves = []
    for seed, table in synthetic.training().items():
        curves.append(tmp_path / f"seed{seed}" / "training.csv")
        curves[-1].parent.mkdir()
        table.to_csv(curves[-1], index=False)
    assert draw(found["menagerie", "figure_1_dpo"], [dynamics]).stat().st_size > 5_000
    assert draw(found["menagerie", "figure_4"], [rates]).stat().st_size > 5_000
    assert draw(found["menagerie", "training_dpo"], of_seeds=curves, seeds=[0, 1]).stat().st_size > 5_000

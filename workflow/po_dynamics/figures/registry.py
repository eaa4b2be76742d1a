"""Every figure of an experiment: its file, what it is drawn of, and the function that draws it.

The workflow plans from this list, so nothing heavy is imported here. Functions are named and not imported: each figure
goes stale with its own module, and a new figure redraws no other. A new one is a module of `plots` with a function

    draw_<name>(<table>, …, output, *, model, run, runs, <option>=…)

(`run` where it is of one run) and an entry here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple, Protocol


class Run(Protocol):
    """What must be known of a run to tell which figures it has."""

    @property
    def name(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def final_sets(self) -> Collection[str]: ...
    @property
    def target(self) -> bool: ...


class Figure(NamedTuple):
    """A figure of each run that it applies to, or of each model.

    A table reaches the function as the argument that is called like the file, without its suffix.
    """

    file: str  # without suffix; "{run}" in it: a figure of one run
    function: str  # module of `plots`, and its function
    tables: tuple[str, ...] = ()  # files of results/<experiment>/tables
    of_seeds: tuple[str, ...] = ()  # files of each seed's folder; the function is given tables by seed
    families: tuple[str, ...] = ("offline", "online")
    final_set: str | None = None  # drawn of runs that are probed towards these final responses
    target: bool = False  # drawn of runs that are compared with their target

    @property
    def per_run(self) -> bool:
        return "{run}" in self.file

    def applies(self, run: Run) -> bool:
        """Whether the run has this figure."""
        probed = self.final_set is None or self.final_set in run.final_sets
        return run.family in self.families and probed and (run.target or not self.target)


FIGURES = (
    Figure(
        "figure_1_{run}",
        "alignment:draw_alignment",
        ("dynamics.parquet", "resolution.csv"),
        families=("offline",),
        final_set="heldout",
    ),
    Figure(
        "figure_2_{run}",
        "alignment:draw_alignment",
        ("dynamics.parquet", "resolution.csv"),
        families=("online",),
        final_set="heldout",
    ),
    Figure(
        "figure_3_{run}",
        "advantages:draw_advantages",
        ("advantages.parquet",),
        families=("online",),
        final_set="heldout",
    ),
    Figure("figure_4", "win_rates:draw_win_rates", ("win_rates.csv",)),
    Figure(
        "figure_7_{run}",
        "alignment:draw_alignment",
        ("dynamics.parquet", "resolution.csv"),
        families=("offline",),
        final_set="train",
    ),
    Figure(
        "prediction_{run}",
        "checks.prediction:draw_prediction",
        ("prediction.parquet", "prediction_tests.parquet"),
        final_set="heldout",
    ),
    Figure(
        "token_prediction_{run}",
        "checks.token_prediction:draw_token_prediction",
        ("token_bins.parquet", "token_prediction.parquet"),
        final_set="heldout",
    ),
    Figure(
        "displacement_{run}",
        "displacement:draw_displacement",
        ("displacement.csv",),
        families=("offline",),
        final_set="heldout",
    ),
    Figure("target", "target:draw_target", ("target.csv",), target=True),
    Figure("training_{run}", "training:draw_training", of_seeds=("training.csv",)),
)


class Drawing(NamedTuple):
    """A figure to be drawn: of a model, or of one of its runs."""

    figure: Figure
    model: str
    run: str | None = None

    @property
    def file(self) -> str:
        """The file's name without suffix."""
        return self.figure.file.format(run=self.run)

    @property
    def function(self) -> str:
        """`module:function`; what the module imports decides whether the drawing is stale."""
        return f"{__package__}.plots.{self.figure.function}"

    @property
    def arguments(self) -> dict[str, Any]:
        """What the function is told beside tables, output, model and the description of the runs."""
        arguments = {"run": self.run, "final_set": self.figure.final_set}
        return {name: value for name, value in arguments.items() if value is not None}


def drawings(runs: Iterable[Run]) -> dict[tuple[str, str], Drawing]:
    """Every figure of these runs by model and file name (without suffix), in the order of the list."""
    return {(drawing.model, drawing.file): drawing for drawing in _drawings(list(runs))}


def _drawings(runs: list[Run]) -> Iterator[Drawing]:
    for figure in FIGURES:
        of = [run for run in runs if figure.applies(run)]
        if figure.per_run:
            yield from (Drawing(figure, run.model, run.name) for run in of)
        else:
            yield from (Drawing(figure, model) for model in dict.fromkeys(run.model for run in of))

"""Rules draw_figure and draw_bandit: a figure from tables; `params.function` draws it."""

from pathlib import Path

from po_dynamics.harness.job import inputs_of, stage

with stage(snakemake):
    import importlib

    import pandas as pd
    from po_dynamics.storage.layout import CURVES, parse

    def read(path: Path) -> pd.DataFrame:
        return pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)

    def read_all(found: Path | list[Path]) -> object:
        """A table; of training curves, one per seed."""
        if isinstance(found, Path):
            return read(found)
        return {int(parse(path, CURVES)["seed"]): read(path) for path in found}

    tables = {name: read_all(found) for name, found in inputs_of(snakemake).items()}
    module, _, name = snakemake.params.function.partition(":")
    draw = getattr(importlib.import_module(module), name)
    draw(**tables, output=Path(snakemake.output.figure), **snakemake.params.arguments)

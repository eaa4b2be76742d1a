"""Rule draw_figure: one figure, by the function that the registry of figures names; tables reach it by name."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    import importlib

    import pandas as pd

    def read(path):
        return pd.read_csv(path) if Path(path).suffix == ".csv" else pd.read_parquet(path)

    inputs, params = snakemake.input, snakemake.params
    tables = {Path(path).stem: read(path) for path in inputs.get("tables", [])}
    for path, seed in zip(inputs.get("of_seeds", []), params.seeds, strict=True):
        tables.setdefault(Path(path).stem, {})[seed] = read(path)
    draw = getattr(importlib.import_module(params.call["module"]), params.call["function"])
    draw(**tables, output=Path(snakemake.output.figure), runs=params.runs, **params.call["arguments"])

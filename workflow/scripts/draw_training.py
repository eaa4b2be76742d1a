"""Rule draw_training: the training curves of one run, all seeds."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    import pandas as pd
    from po_dynamics.figures.plots.training import draw_training

    draw_training(
        {seed: pd.read_csv(path) for seed, path in zip(snakemake.params.seeds, snakemake.input.curves, strict=True)},
        Path(snakemake.output.figure),
        model=snakemake.wildcards.model,
        run=snakemake.wildcards.run,
        runs=snakemake.params.runs,
    )

"""Rule draw_prediction: the change of the NLL of D′ between checkpoints against what G predicts."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    import pandas as pd
    from po_dynamics.figures.plots.prediction import draw_prediction

    draw_prediction(
        pd.read_parquet(snakemake.input.prediction),
        pd.read_parquet(snakemake.input.rank_correlation),
        Path(snakemake.output.figure),
        model=snakemake.wildcards.model,
        run=snakemake.wildcards.run,
        runs=snakemake.params.runs,
    )

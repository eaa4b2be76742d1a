"""Rule draw_advantages: Figure 3, the mean signed advantage of the TOP, MID and BOT tokens."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    import pandas as pd
    from po_dynamics.figures.plots.advantages import draw_advantages

    draw_advantages(
        pd.read_parquet(snakemake.input.advantages),
        Path(snakemake.output.figure),
        model=snakemake.wildcards.model,
        run=snakemake.wildcards.run,
        runs=snakemake.params.runs,
    )

"""Rule draw_dynamics: Figures 1, 2 and 7b, the gradient alignment of one run over its steps."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    import pandas as pd
    from po_dynamics.figures.plots.alignment import draw_alignment

    draw_alignment(
        pd.read_parquet(snakemake.input.dynamics[0]),
        Path(snakemake.output.figure),
        model=snakemake.wildcards.model,
        run=snakemake.wildcards.run,
        runs=snakemake.params.runs,
        final_set=snakemake.params.final_set,
    )

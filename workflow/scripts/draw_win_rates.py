"""Rule draw_win_rates: Figure 4, win rates over the steps, a panel per kind of variant."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    import pandas as pd
    from po_dynamics.figures.plots.win_rates import draw_win_rates

    draw_win_rates(
        pd.read_csv(snakemake.input.win_rates[0]),
        Path(snakemake.output.figure),
        model=snakemake.wildcards.model,
        runs=snakemake.params.runs,
    )

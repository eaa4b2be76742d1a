"""Rule tabulate_win_rates: win rates with intervals of every checkpoint, and the results table."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    from po_dynamics.evaluation import stats

    evaluations = []
    for annotations, responses in zip(snakemake.input.annotations[::2], snakemake.input.responses[::2], strict=True):
        # results/<experiment>/<model>/ and then evaluation/base/… or <run>/seed<n>/evaluation/<chunk>/…
        parts = Path(annotations).parts
        run, seed = ("base", 0) if parts[3] == "evaluation" else (parts[3], int(parts[4].removeprefix("seed")))
        evaluations.append(
            {"model": parts[2], "run": run, "seed": seed, "annotations": annotations, "responses": responses}
        )
    outcomes = stats.load_outcomes(evaluations)
    stats.write_csv(stats.win_rates(outcomes, snakemake.params.judge), snakemake.output.win_rates)
    stats.write_csv(stats.results_table(outcomes, snakemake.params.runs), snakemake.output.results)

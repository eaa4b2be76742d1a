"""Rule tabulate_win_rates: win rates with intervals of every checkpoint, and the results table."""

from po_dynamics.harness.job import stage

with stage(snakemake):
    from po_dynamics.evaluation import stats
    from po_dynamics.storage.layout import ANNOTATIONS, EVALUATION, RESPONSES, STAGE_EVALUATION, parse

    baselines = {parse(path, STAGE_EVALUATION + RESPONSES)["model"]: path for path in snakemake.input.baselines}
    evaluations = []
    for annotations, responses in zip(snakemake.input.annotations, snakemake.input.responses, strict=True):
        found = parse(annotations, EVALUATION + ANNOTATIONS, STAGE_EVALUATION + ANNOTATIONS)
        run = {"run": found.get("run") or found["stage"], "seed": int(found.get("seed", 0))}
        of_folder = {"annotations": annotations, "responses": responses, "baseline": baselines[found["model"]]}
        evaluations.append({"model": found["model"], **run, **of_folder})
    outcomes = stats.load_outcomes(evaluations)
    stats.write_csv(stats.win_rates(outcomes, snakemake.params.judge), snakemake.output.win_rates)
    stats.write_csv(stats.results_table(outcomes, snakemake.params.runs), snakemake.output.results)

"""Rule mark_judge: the judge's report card, on answers of the experiment."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    from po_dynamics.evaluation.reliability.examination import examine
    from po_dynamics.evaluation.reliability.judgements import write_judgements
    from po_dynamics.evaluation.reliability.report_card import report_card
    from po_dynamics.evaluation.stats import write_csv
    from po_dynamics.harness import config as configuration

    judged, labels = examine(
        responses=[Path(path) for path in snakemake.input.responses],
        folder=Path(snakemake.output.judged).parent,
        judge=snakemake.params.judge,
        truth=snakemake.params.card["truth"],
        prompts=snakemake.params.card["prompts"],
        seed=snakemake.params.seed,
        calls=configuration.load(snakemake.config).calls,
    )
    write_judgements(judged, Path(snakemake.output.judged))
    write_csv(report_card(judged, labels), snakemake.output.card)

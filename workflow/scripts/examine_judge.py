"""Rule examine_judge: what can be known of the judge before anything is trained."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    from po_dynamics.evaluation.preflight import examine_judge
    from po_dynamics.harness import config as configuration

    experiment = configuration.load(snakemake.config)  # what the estimate is of makes nothing stale
    examine_judge(
        judge=experiment.judge,
        calls=experiment.calls,
        prompts=Path(snakemake.input.data) / "eval_prompts.parquet",
        evaluations=experiment.evaluations,
        max_new_tokens=experiment.config["evaluation"]["max_new_tokens"],
        output=Path(snakemake.output.judge),
    )

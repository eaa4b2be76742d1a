"""Rule examine_judge: what can be known of the judge before anything is trained."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    from po_dynamics.evaluation.preflight import examine_judge
    from po_dynamics.harness import config as configuration

    experiment = configuration.load(snakemake.config)  # what the estimate is of makes nothing stale
    evaluation = experiment.config["evaluation"]
    examine_judge(
        judge=experiment.judge,
        calls=experiment.calls,
        prompts=Path(snakemake.input.data) / "eval_prompts.parquet",
        asked=experiment.evaluations * (2 if evaluation["order"] == "both" else 1),
        max_new_tokens=evaluation["max_new_tokens"],
        output=Path(snakemake.output.judge),
    )

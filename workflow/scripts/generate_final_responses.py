"""Rule generate_final_responses: D′, the final checkpoint's greedy responses."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    from po_dynamics.evaluation.responses import final_responses

    final_responses(
        checkpoint=Path(snakemake.input.checkpoints) / f"step-{snakemake.params.step}",
        prompts=Path(snakemake.input.prompts),
        output=Path(snakemake.output.responses),
        settings=snakemake.params.settings,
        n=snakemake.params.samples,
        seed=snakemake.params.seed,
    )

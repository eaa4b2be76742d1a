"""Rule generate_final_responses: D′, the final checkpoint's greedy responses."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    from po_dynamics.evaluation.responses import final_responses

    heldout = snakemake.wildcards.final_set == "heldout"
    prompts = Path(snakemake.input.data) / "final_prompts.parquet" if heldout else snakemake.input.preferences
    final_responses(
        checkpoint=Path(snakemake.input.checkpoints) / f"step-{snakemake.params.step}",
        prompts=Path(prompts),
        output=Path(snakemake.output.responses),
        settings=snakemake.params.settings,
        n=snakemake.params.samples,
        seed=snakemake.params.seed,
    )

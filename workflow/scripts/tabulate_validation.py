"""Rule tabulate_validation: what trainings that left something out did, beside what G predicts."""

from po_dynamics.harness.job import inputs_of, stage

with stage(snakemake):
    from po_dynamics.validation.effects import agreement
    from po_dynamics.validation.stored import all_effects, all_scores

    files = inputs_of(snakemake)
    results = {"effects": all_effects(files["without"], snakemake.params.intervals, files["dynamics"])}
    results["agreement"] = agreement(results["effects"])
    results["halves"], results["scores"] = all_scores(files["halves"])
    for name, table in results.items():
        table.to_csv(snakemake.output[name], index=False)

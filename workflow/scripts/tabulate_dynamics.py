"""Rule tabulate_dynamics: gradient alignment, and what else follows from the probe tables, of every probed run."""

from po_dynamics.harness.job import stage

with stage(snakemake):
    import pandas as pd
    from po_dynamics.dynamics import alignment, displacement, observables, stored

    probes = [stored.load(keys, folder) for keys, folder in stored.steps_of(snakemake.input.probes)]
    table = alignment.tabulate(probes)
    losses = pd.concat(map(observables.final_losses, probes), ignore_index=True)
    prediction = observables.prediction(table, losses)
    results = {
        "dynamics": table,
        "advantages": pd.concat(map(observables.advantages, probes), ignore_index=True),
        "weights": pd.concat(map(observables.weights, probes), ignore_index=True),
        "logps": pd.concat(map(observables.logps, probes), ignore_index=True),
        "entanglement": pd.concat(map(observables.entanglement, probes), ignore_index=True),
        "prediction": prediction,
        "rank_correlation": observables.rank_correlation(prediction),
    }
    for name, result in results.items():
        result.to_parquet(snakemake.output[name], index=False)
    displacement.displacement(probes).to_csv(snakemake.output.displacement, index=False)
    displacement.check(probes).to_csv(snakemake.output.displacement_check, index=False)

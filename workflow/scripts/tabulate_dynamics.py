"""Rule tabulate_dynamics: gradient alignment, and what else follows from the probe tables, of every probed run."""

from po_dynamics.harness.job import stage

with stage(snakemake):
    import pandas as pd
    from po_dynamics.dynamics import alignment, stored
    from po_dynamics.dynamics.observables import displacement, distributions, logps, prediction, resolution

    probes = [stored.load(keys, folder) for keys, folder in stored.steps_of(snakemake.input.probes)]
    table = alignment.tabulate(probes)
    losses = pd.concat(map(prediction.final_losses, probes), ignore_index=True)
    predictions = prediction.prediction(table, losses)
    results = {
        "dynamics": table,
        "advantages": pd.concat(map(distributions.advantages, probes), ignore_index=True),
        "weights": pd.concat(map(distributions.weights, probes), ignore_index=True),
        "logps": pd.concat(map(logps.logps, probes), ignore_index=True),
        "entanglement": pd.concat(map(logps.entanglement, probes), ignore_index=True),
        "prediction": predictions,
        "rank_correlation": prediction.rank_correlation(predictions),
    }
    for name, result in results.items():
        result.to_parquet(snakemake.output[name], index=False)
    resolution.resolution(table).to_csv(snakemake.output.resolution, index=False)
    displacement.displacement(probes).to_csv(snakemake.output.displacement, index=False)
    displacement.check(probes).to_csv(snakemake.output.displacement_check, index=False)

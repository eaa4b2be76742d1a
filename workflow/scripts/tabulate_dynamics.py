"""Rule tabulate_dynamics: gradient alignment, and what else follows from the probe tables, of every probed run."""

from po_dynamics.harness.job import stage

with stage(snakemake):
    import sys

    import pandas as pd
    from po_dynamics.dynamics import alignment, stored
    from po_dynamics.dynamics.observables import (
        displacement,
        distributions,
        logps,
        prediction,
        resolution,
        token_prediction,
    )
    from po_dynamics.dynamics.observables.trainings import Rates
    from po_dynamics.storage.layout import CURVES, parse

    probes = [stored.load(keys, folder) for keys, folder in stored.steps_of(snakemake.input.probes)]
    rates = {}
    for path in snakemake.input.curves:
        of = parse(path, CURVES)
        learning = snakemake.params.learning[f"{of['model']}/{of['run']}"]
        rates[of["model"], of["run"], int(of["seed"])] = Rates.of(pd.read_csv(path), **learning)
    table = alignment.tabulate(probes)
    losses = pd.concat(map(prediction.final_losses, probes), ignore_index=True)
    changes = prediction.changes(table, losses, rates)
    for line in prediction.without_state(changes):
        print(line, file=sys.stderr)
    tokens = list(token_prediction.intervals(probes, rates))
    results = {
        "dynamics": table,
        "advantages": pd.concat(map(distributions.advantages, probes), ignore_index=True),
        "weights": pd.concat(map(distributions.weights, probes), ignore_index=True),
        "logps": pd.concat(map(logps.logps, probes), ignore_index=True),
        "entanglement": pd.concat(map(logps.entanglement, probes), ignore_index=True),
        "prediction": changes,
        "prediction_tests": prediction.assess(changes),
        "token_prediction": token_prediction.token_prediction(tokens),
        "token_bins": token_prediction.token_bins(tokens),
    }
    for name, result in results.items():
        result.to_parquet(snakemake.output[name], index=False)
    resolution.resolution(table).to_csv(snakemake.output.resolution, index=False)
    displacement.displacement(probes).to_csv(snakemake.output.displacement, index=False)
    displacement.check(probes).to_csv(snakemake.output.displacement_check, index=False)

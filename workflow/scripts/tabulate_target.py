"""Rule tabulate_target: distance to the target of every sampled policy, log Z of every prompt, and the claims."""

from po_dynamics.harness.job import inputs_of, stage

with stage(snakemake):
    import pandas as pd
    from po_dynamics.evaluation.distances import distances, judge, partition
    from po_dynamics.storage.layout import TARGET_SAMPLES, parse

    about, partitions, distanced = snakemake.params, [], []
    for path in inputs_of(snakemake)["samples"]:
        model, samples = parse(path, TARGET_SAMPLES)["model"], pd.read_parquet(path)
        temperatures = sorted({*about.own[model].values(), about.temperature})
        log_z = partition(samples, temperatures)
        table = distances(samples, log_z, about.own[model], about.late, about.least_ess)
        for tables, found in ((partitions, log_z), (distanced, table)):
            found.insert(0, "model", model)
            tables.append(found)
    table = pd.concat(distanced, ignore_index=True)
    for name, found in {"target": table, "partition": pd.concat(partitions), "claims": judge(table)}.items():
        found.to_csv(snakemake.output[name], index=False)

"""Rule tabulate_data: what became of every row of the data sets, and which prompts they share."""

from po_dynamics.harness.job import inputs_of, stage

with stage(snakemake):
    from po_dynamics.data import statistics
    from po_dynamics.storage.layout import TOKENS, parse

    inputs = inputs_of(snakemake)
    found = {path: parse(path, TOKENS) for path in inputs["tokens"]}
    tokens = {(names["model"], names["data_set"]): path for path, names in found.items()}
    tables = {
        "counts": statistics.count_rows(inputs["data"], tokens, snakemake.params.lengths),
        "sources": statistics.describe_sources(inputs["data"]),
        "overlaps": statistics.count_overlaps(inputs["data"]),
    }
    for name, table in tables.items():
        table.to_csv(snakemake.output[name], index=False)

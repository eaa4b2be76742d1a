"""Rule tokenise: the usable rows of a data set with their token ids, once for a model."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    from po_dynamics.data.tokens.tokenising import tokenise

    name, rows = snakemake.wildcards.data_set, Path(snakemake.input.rows)
    tokenise(
        base=Path(snakemake.input.base),
        rows=rows / f"{name}.parquet" if rows.is_dir() else rows,
        data_set=name,
        output=Path(snakemake.output.tokens),
        special_tokens=snakemake.params.special_tokens,
        parallel=snakemake.threads > 1,
    )

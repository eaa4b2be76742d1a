"""Rule write_report: one self-contained page with every number, figure and cost of the experiment."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    import yaml
    from po_dynamics.figures.report import Contents, write_report

    contents = Contents(
        experiment=snakemake.wildcards.experiment,
        config=yaml.safe_load(Path(snakemake.input.config).read_text()),
        runs=snakemake.params.runs,
        results=Path(snakemake.input.results),
        win_rates=Path(snakemake.input.win_rates),
        figures=[Path(path) for path in snakemake.input.figures],
        tables=[Path(snakemake.input.dynamics)],
    )
    write_report(Path(snakemake.output.report), contents)

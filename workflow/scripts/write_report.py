"""Rule write_report: one self-contained page with every number, figure and cost of the experiment."""

from pathlib import Path

from po_dynamics.harness.job import inputs_of, stage

with stage(snakemake):
    import yaml
    from po_dynamics.figures.report.page import Contents, DataTables, Displacement, ExactBandit, Target, write_report

    inputs = inputs_of(snakemake)

    def part(kind, prefix):
        """The files of a part of the report that an experiment may do without."""
        files = {name: inputs.get(f"{prefix}_{name}") for name in kind._fields}
        return kind(**files) if all(files.values()) else None

    contents = Contents(
        experiment=snakemake.wildcards.experiment,
        config=yaml.safe_load(inputs["config"].read_text()),
        runs=snakemake.params.runs,
        results=inputs["results"],
        win_rates=inputs["win_rates"],
        figures=inputs["figures"],
        tables=[inputs["dynamics"]],
        data=part(DataTables, "data"),
        resolution=inputs["resolution"],
        displacement=Displacement(inputs["displacement"], inputs["displacement_check"]),
        bandit=part(ExactBandit, "bandit"),
        target=part(Target, "target"),
        judge_card=inputs.get("judge_card"),
    )
    write_report(Path(snakemake.output.report), contents)

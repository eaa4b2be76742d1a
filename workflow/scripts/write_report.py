"""Rule write_report: one self-contained page with every number, figure and cost of the experiment."""

from pathlib import Path

from po_dynamics.harness.job import inputs_of, stage

with stage(snakemake):
    import yaml
    from po_dynamics.figures.report import Contents, Displacement, ExactBandit, write_report

    inputs = inputs_of(snakemake)
    bandit = {name: inputs[f"bandit_{name}"] for name in ExactBandit._fields if f"bandit_{name}" in inputs}
    contents = Contents(
        experiment=snakemake.wildcards.experiment,
        config=yaml.safe_load(inputs["config"].read_text()),
        runs=snakemake.params.runs,
        results=inputs["results"],
        win_rates=inputs["win_rates"],
        figures=inputs["figures"],
        tables=[inputs["dynamics"]],
        bandit=ExactBandit(**bandit) if bandit else None,
        displacement=Displacement(inputs["displacement"], inputs["displacement_check"]),
    )
    write_report(Path(snakemake.output.report), contents)

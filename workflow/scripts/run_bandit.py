"""Rule run_bandit: the exact bandit's tables."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    from po_dynamics.bandit.run import run_bandit

    run_bandit(Path(snakemake.output.claims).parent, snakemake.params.settings)

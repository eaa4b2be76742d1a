"""Rule copy_preferences: the preference pairs of a model, those of the published data set."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    from po_dynamics.data.selection import copy_preferences

    copy_preferences(data=Path(snakemake.input.data), output=Path(snakemake.output.preferences))

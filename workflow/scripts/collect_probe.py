"""Rule collect_probe: the step folders of all chunks of a run's probe in one folder."""

import os
import shutil
from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    output = Path(snakemake.output.tables)
    for chunk in snakemake.input.tables:
        for step in sorted(Path(chunk).glob("step-*")):
            shutil.copytree(step, output / step.name, copy_function=os.link)

"""Rule write_config: the configuration that the experiment ran with, every default filled in."""

import json
from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    import yaml

    resolved = json.loads(json.dumps(snakemake.params.config))  # plain lists and mappings, without YAML's anchors
    Path(snakemake.output.config).write_text(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))

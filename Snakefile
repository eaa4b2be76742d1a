"""PO Dynamics: what preference optimisation does to a language model while it trains."""

from snakemake.utils import min_version

min_version("9.27")


# Snakemake would merge the demo into a configuration given by --configfile; each is complete in itself.
if not workflow.overwrite_configfiles:

    configfile: "config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/models.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/probe.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/bandit.smk"
include: "workflow/rules/target.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/validate.smk"


onstart:
    require_judge(workflow.dag.needrun_jobs())


localrules:
    all,


rule all:
    default_target: True
    input:
        of_experiment(layout.REPORT),
        of_experiment(layout.CONFIGURATION),
        of_experiment(layout.JUDGE),
        # Named here, though the report needs them: Snakemake rebuilds a deleted file only if it is asked for.
        TABLES,
        figure_files,
        BANDIT_FILES,
        TARGET_FILES,
        VALIDATION_FILES,

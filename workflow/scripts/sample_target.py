"""Rule sample_target: responses of the reference and of checkpoints, for their distance to the target."""

from pathlib import Path

from po_dynamics.harness.job import inputs_of, stage

with stage(snakemake):
    from po_dynamics.evaluation.target import Policy, sample_policies
    from po_dynamics.storage.layout import CHECKPOINTS, parse

    inputs, policies = inputs_of(snakemake), {}
    for folder in inputs["checkpoints"]:
        found = parse(folder, CHECKPOINTS)
        steps = snakemake.params.steps[found["run"]]
        for step in steps:
            policy = Policy(found["run"], int(found["seed"]), step, proposal=step == steps[-1])
            policies[policy] = folder / f"step-{step}"
    sample_policies(
        policies,
        reference=inputs["sft"],
        reward=snakemake.params.function or inputs["reward"],
        prompts=inputs["prompts"],
        output=Path(snakemake.output.samples),
        settings=snakemake.params.settings,
        seed=snakemake.params.seed,
    )

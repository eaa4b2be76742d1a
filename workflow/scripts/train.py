"""Rules train_offline and train_online: DPO or PPO, or one of their families, with checkpoints for the probe."""

from pathlib import Path

from po_dynamics.harness.job import inputs_of, stage

with stage(snakemake):
    from po_dynamics.harness.launch import launch
    from po_dynamics.objectives.registry import bind

    training = snakemake.params.training
    inputs = inputs_of(snakemake)
    start = next(iter(inputs))  # the model that training starts from
    if training["first_step"]:
        inputs[start] /= f"step-{training['first_step']}"
    launch(
        snakemake.params.function,
        {
            **inputs,
            "output": Path(snakemake.output.checkpoints),
            "log": Path(snakemake.output.log),
            "state": Path(snakemake.params.state),
            **training,
            "objective": bind(**training["objective"]),
        },
        devices=snakemake.resources.get("gpu", 0),
    )

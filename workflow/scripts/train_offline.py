"""Rule train_offline: DPO or one of its family, with checkpoints for the probe."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    from po_dynamics.harness.launch import launch
    from po_dynamics.objectives.registry import bind

    training = snakemake.params.training
    init = Path(snakemake.input.init[0])
    launch(
        "po_dynamics.training.offline:train_offline",
        {
            "init": init / f"step-{training['first_step']}" if training["first_step"] else init,
            "preferences": Path(snakemake.input.preferences[0]),
            "reference": Path(snakemake.input.reference[0]),
            "output": Path(snakemake.output.checkpoints),
            "log": Path(snakemake.output.log),
            "state": Path(snakemake.params.state),
            **training,
            "objective": bind(**training["objective"], family="offline"),
        },
        devices=snakemake.resources.get("gpu", 0),
        options=("--config_file", "slurm/fsdp.yaml"),
    )

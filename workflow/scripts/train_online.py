"""Rule train_online: PPO or one of its family, with checkpoints (policy and critic) for the probe."""

from pathlib import Path

from po_dynamics.harness.job import stage

with stage(snakemake):
    from po_dynamics.harness.launch import launch
    from po_dynamics.objectives.registry import bind

    training = snakemake.params.training
    init = Path(snakemake.input.init[0])
    launch(
        "po_dynamics.ppo.train:train_online",
        {
            "policy": init / f"step-{training['first_step']}" if training["first_step"] else init,
            "reference": Path(snakemake.input.reference[0]),
            "reward": Path(snakemake.input.reward[0]),
            "prompts": Path(snakemake.input.preferences[0]),
            "output": Path(snakemake.output.checkpoints),
            "log": Path(snakemake.output.log),
            "state": Path(snakemake.params.state),
            **training,
            "objective": bind(**training["objective"], family="online"),
        },
        devices=snakemake.resources.get("gpu", 0),
        options=("--config_file", "slurm/fsdp.yaml"),
    )

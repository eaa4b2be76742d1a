"""Preference optimisation: one rule per family of objectives, one job per run and seed.

REQUIRED INPUTS: the model's sft/ (or base/), preferences.parquet, and reference/ (offline; with rewards.parquet for
objectives that need it) or reward/ (online).
OUTPUTS: <run>/seed<n>/checkpoints/step-<t>/ and training.csv.
Training state for an exact resume is kept in .../state/, which is no output: Snakemake deletes the outputs of a failed
job, and a restarted job goes on from its state.
"""

TRAIN_OFFLINE = "po_dynamics.training.offline:train_offline"
TRAIN_ONLINE = "po_dynamics.ppo.train:train_online"


# The inputs are named as the arguments of `function`; the first one is the model that training starts from.
rule train_offline:
    input:
        unpack(
            artefacts(
                init=initial_model,
                preferences=layout.PREFERENCES,
                reference=reference_logps,
                rewards=preference_rewards,
            )
        ),
    output:
        checkpoints=checkpoints(layout.CHECKPOINTS),
        log=layout.CURVES,
        provenance=layout.record(layout.CHECKPOINTS),
    log:
        f"{layout.RUN_LOGS}/train.log",
    wildcard_constraints:
        run=runs_of("offline"),
    conda:
        "../../envs/train.yaml"
    resources:
        gpu=needs("offline", "gpu"),
        mem_mb=needs("offline", "mem_mb"),
        runtime=needs("offline", "runtime"),
    params:
        function=TRAIN_OFFLINE,
        code=code("train.py", TRAIN_OFFLINE),
        objective_code=objective_code,
        training=training,
        state=f"{layout.STATE}/train",
    script:
        "../scripts/train.py"


use rule train_offline as train_online with:
    input:
        unpack(artefacts(policy=initial_model, reference=initial, reward=layout.REWARD, prompts=layout.PREFERENCES)),
    wildcard_constraints:
        run=runs_of("online"),
    resources:
        gpu=needs("online", "gpu"),
        mem_mb=needs("online", "mem_mb"),
        runtime=needs("online", "runtime"),
    params:
        function=TRAIN_ONLINE,
        code=code("train.py", TRAIN_ONLINE),

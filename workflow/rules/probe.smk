"""Final responses D′ and the probe of every checkpoint of a probed run.

REQUIRED INPUTS: a run's checkpoints/, its model's sft/ (or base/) as the reference, prompts; reward/ (online).
OUTPUTS: .../final_responses/{final_set}.parquet and .../probe/{final_set}/step-<t>/{samples,scores,batches}.parquet.
"""


rule generate_final_responses:
    input:
        unpack(artefacts(checkpoints=layout.CHECKPOINTS, prompts=final_prompts)),
    output:
        responses=layout.FINAL_RESPONSES,
        provenance=layout.record(layout.FINAL_RESPONSES),
    log:
        f"{layout.RUN_LOGS}/final_responses_{{final_set}}.log",
    conda:
        "../../envs/train.yaml"
    resources:
        gpu=needs("generate", "gpu"),
        mem_mb=needs("generate", "mem_mb"),
        runtime=needs("generate", "runtime"),
    params:
        code=code("generate_final_responses.py"),
        step=lambda wildcards: run_of(wildcards).steps[-1],
        samples=CONFIG["probe"]["samples"]["final"],
        seed=CONFIG["probe"]["seed"],
        settings={"max_new_tokens": CONFIG["evaluation"]["max_new_tokens"]},
    script:
        "../scripts/generate_final_responses.py"


PROBE_OFFLINE = "po_dynamics.probe.offline:probe_offline"
PROBE_ONLINE = "po_dynamics.probe.online:probe_online"
PROBED = {
    "checkpoints": layout.CHECKPOINTS,
    "reference": initial,
    "preferences": tokens("preferences"),
    "final_responses": layout.FINAL_RESPONSES,
}


rule probe_offline:
    input:
        unpack(artefacts(**PROBED, rewards=preference_rewards)),
    output:
        tables=temp(directory(layout.PROBE_CHUNK)),
        provenance=layout.record(layout.PROBE_CHUNK),
    log:
        f"{layout.RUN_LOGS}/probe_{{final_set}}_{{chunk}}.log",
    wildcard_constraints:
        run=runs_of("offline"),
    conda:
        "../../envs/train.yaml"
    resources:
        gpu=needs("probe", "gpu"),
        mem_mb=needs("probe", "mem_mb"),
        runtime=needs("probe", "runtime"),
    params:
        **probing(PROBE_OFFLINE),
    script:
        "../scripts/probe.py"


# Fresh roll-outs are scored by the reward model.
use rule probe_offline as probe_online with:
    input:
        unpack(artefacts(**PROBED, reward=layout.REWARD)),
    wildcard_constraints:
        run=runs_of("online"),
    params:
        **probing(PROBE_ONLINE),


rule collect_probe:
    input:
        unpack(artefacts(tables=probe_chunks)),
    output:
        tables=directory(layout.PROBE),
        provenance=layout.record(layout.PROBE),
    log:
        f"{layout.RUN_LOGS}/collect_probe_{{final_set}}.log",
    localrule: True
    conda:
        "../../envs/plot.yaml"
    params:
        code=code("collect_probe.py"),
    script:
        "../scripts/collect_probe.py"

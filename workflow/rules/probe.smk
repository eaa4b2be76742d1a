"""Final responses D′ and the probe of every checkpoint of a probed run.

REQUIRED INPUTS: a run's checkpoints/, its model's sft/ (or base/) as the reference, prompts; reward/ (online).
OUTPUTS: .../final_responses/{final_set}.parquet and .../probe/{final_set}/step-<t>/{samples,scores,batches}.parquet.
"""


rule generate_final_responses:
    input:
        unpack(artefacts(checkpoints=layout.CHECKPOINTS, data=layout.DATA, preferences=layout.PREFERENCES)),
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
        samples=CONFIG["probe"]["samples"],
        seed=CONFIG["probe"]["seed"],
        max_new_tokens=CONFIG["evaluation"]["max_new_tokens"],
    script:
        "../scripts/generate_final_responses.py"


rule probe_checkpoints:
    input:
        unpack(
            artefacts(
                checkpoints=layout.CHECKPOINTS,
                reference=initial,
                preferences=layout.PREFERENCES,
                final_responses=layout.FINAL_RESPONSES,
                reward=reward_of_rollouts,
            )
        ),
    output:
        tables=temp(directory(layout.PROBE_CHUNK)),
        provenance=layout.record(layout.PROBE_CHUNK),
    log:
        f"{layout.RUN_LOGS}/probe_{{final_set}}_{{chunk}}.log",
    conda:
        "../../envs/train.yaml"
    resources:
        gpu=needs("probe", "gpu"),
        mem_mb=needs("probe", "mem_mb"),
        runtime=needs("probe", "runtime"),
    params:
        code=code("probe_checkpoints.py"),
        objective_code=objective_code,
        steps=steps_of_chunk,
        training=training,
        probe=CONFIG["probe"],
        state=f"{layout.STATE}/probe_{{final_set}}_{{chunk}}",
    script:
        "../scripts/probe_checkpoints.py"


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

"""Data sets in one schema, from the embedded world or from the hub.

REQUIRED INPUTS: none.
OUTPUTS: data/ with sft, preferences, final_prompts and eval_prompts (Parquet); for the world also
pretraining.parquet and tokenizer/.
"""

if CONFIG["data"]["source"] == "world":

    rule make_world:
        output:
            data=directory(layout.DATA),
            provenance=layout.record(layout.DATA),
        log:
            f"{layout.LOGS}/make_world.log",
        conda:
            "../../envs/train.yaml"
        params:
            code=code("make_world.py"),
            settings=CONFIG["data"],
        script:
            "../scripts/make_world.py"

else:

    rule download_data:
        output:
            data=directory(layout.DATA),
            provenance=layout.record(layout.DATA),
        log:
            f"{layout.LOGS}/download_data.log",
        localrule: True
        conda:
            "../../envs/train.yaml"
        params:
            code=code("download_data.py"),
            settings=CONFIG["data"],
        script:
            "../scripts/download_data.py"

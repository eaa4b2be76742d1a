"""Data sets in one schema, from the embedded world or from the hub.

REQUIRED INPUTS: none.
OUTPUTS: results/{experiment}/data/ with sft, preferences, final_prompts and eval_prompts (Parquet); for the world also
pretraining.parquet and tokenizer/.
"""

if config["data"]["source"] == "world":

    rule make_world:
        output:
            data=directory("results/{experiment}/data"),
            provenance="results/{experiment}/data.json",
        log:
            "results/{experiment}/logs/make_world.log",
        conda:
            "../../envs/train.yaml"
        params:
            code=code("make_world.py"),
            settings=config["data"],
        script:
            "../scripts/make_world.py"

else:

    rule download_data:
        output:
            data=directory("results/{experiment}/data"),
            provenance="results/{experiment}/data.json",
        log:
            "results/{experiment}/logs/download_data.log",
        localrule: True
        conda:
            "../../envs/train.yaml"
        params:
            code=code("download_data.py"),
            settings=config["data"],
        script:
            "../scripts/download_data.py"

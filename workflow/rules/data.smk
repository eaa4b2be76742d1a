"""Data sets in one schema, from the embedded world or from the hub.

REQUIRED INPUTS: none.
OUTPUTS: data/ with sft, preferences, final_prompts and eval_prompts (Parquet); for the world also
pretraining.parquet and tokenizer/, else sources.json. tables/ with what became of the rows.
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
            content=lambda wildcards: {name: content.of_data(CONFIG["data"][name]) for name in DATA_SETS},
        script:
            "../scripts/download_data.py"


DATA_TABLES = {name: f"{layout.TABLES}/data_{name}.csv" for name in ("counts", "sources", "overlaps")}


rule tabulate_data:
    input:
        unpack(
            artefacts(
                data=layout.DATA,
                tokens=[tokens(name).replace("{model}", model) for model in MODELS for name in DATA_SETS],
            )
        ),
    output:
        **DATA_TABLES,
        provenance=layout.record(DATA_TABLES["counts"]),
    log:
        f"{layout.LOGS}/tabulate_data.log",
    conda:
        "../../envs/plot.yaml"
    params:
        code=code("tabulate_data.py"),
        lengths={name: lengths(model) for name, model in MODELS.items()},
    script:
        "../scripts/tabulate_data.py"

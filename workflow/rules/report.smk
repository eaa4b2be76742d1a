"""Tables, figures and the report: everything that is computed from stored tables, on a CPU.

REQUIRED INPUTS: probe tables, annotations and responses of every run.
OUTPUTS: results/{experiment}/tables/, results/{experiment}/figures/ and results/{experiment}/report.html.
"""

PROBED = [
    f"results/{{experiment}}/{model}/{run}/seed{seed}/probe/{final_set}"
    for model, run, seed in seeds(probed=True)
    for final_set in config["probe"]["final_sets"]
]
EVALUATED = [f"results/{{experiment}}/{model}/evaluation/base" for model in MODELS] + [
    f"results/{{experiment}}/{model}/{run}/seed{seed}/evaluation/{chunk}"
    for model, run, seed in seeds()
    for chunk in range(len(EXPERIMENT.chunks(model, run)))
]
TRAINED = [f"results/{{experiment}}/{model}/{run}/seed{seed}" for model, run, seed in seeds()]

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


def figures(pattern, families):
    """`pattern` for every model that has a probed run of one of these families."""
    models = {model for family in families for model, _, _ in seeds(family, probed=True)}
    return expand(pattern, model=sorted(models), allow_missing=True)


FIGURES = (
    figures("results/{{experiment}}/figures/{model}/figure_1_dpo_dynamics.png", ["offline"])
    + figures("results/{{experiment}}/figures/{model}/figure_2_ppo_dynamics.png", ["online"])
    + figures("results/{{experiment}}/figures/{model}/figure_3_ppo_advantages.png", ["online"])
    + figures("results/{{experiment}}/figures/{model}/figure_4_win_rates.png", ["offline", "online"])
)

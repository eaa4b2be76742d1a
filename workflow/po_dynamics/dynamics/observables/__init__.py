"""Tables beside G, from the same probes: distributions, log-probs, displacement, and whether G predicts."""

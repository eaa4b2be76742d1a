"""An exact bandit: the objectives of `objectives/` where target, expectations and gradients are known."""

"""Supervised fine-tuning, the reward model, and offline preference optimisation."""

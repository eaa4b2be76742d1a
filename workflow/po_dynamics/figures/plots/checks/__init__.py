"""Figures of what tests G: against what then happens, and against retraining."""

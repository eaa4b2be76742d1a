"""Judges: what the configuration says of their calls, and the directories that describe them."""

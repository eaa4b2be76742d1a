"""Data sets: the common schema, and published sets converted to it."""

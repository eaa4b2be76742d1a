"""Greedy responses, their judge, and the statistics of win rates."""

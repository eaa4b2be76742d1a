"""Figures, what they share, and the report. One figure (or several that are drawn alike) is one module of `plots`."""

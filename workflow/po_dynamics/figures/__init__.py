"""Figures, captions and the report."""

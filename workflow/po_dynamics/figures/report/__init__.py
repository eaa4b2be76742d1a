"""The report of an experiment: one HTML file without network."""

"""What runs the stages: configuration, fingerprints, jobs, launching. Never part of a stage's code."""

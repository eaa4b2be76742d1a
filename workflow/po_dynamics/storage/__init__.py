"""What survives a kill: complete files, resumable state, checkpoints, tables."""

"""Token scores and gradients of a checkpoint (GPU)."""

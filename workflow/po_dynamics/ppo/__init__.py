"""PPO and its family: roll out, score, estimate advantages, update."""

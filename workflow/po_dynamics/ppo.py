"""PPO (being written)."""

from po_dynamics.experience import RolloutSample, fresh_rollouts

__all__ = ["RolloutSample", "fresh_rollouts"]

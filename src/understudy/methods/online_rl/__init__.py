"""Online reinforcement learning: they learn from rewards in an environment."""

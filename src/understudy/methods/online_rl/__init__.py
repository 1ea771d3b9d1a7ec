"""Online reinforcement learning: from an environment with rewards, with demonstrations or without."""

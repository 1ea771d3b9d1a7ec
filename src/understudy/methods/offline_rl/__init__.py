"""Offline reinforcement learning: they become better than their episodes, without an environment."""

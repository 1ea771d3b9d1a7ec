"""Offline reinforcement learning: better than the episodes, without an environment."""

"""Experiments of the family demonstrations-in-rl: how demonstrations enter reinforcement learning."""

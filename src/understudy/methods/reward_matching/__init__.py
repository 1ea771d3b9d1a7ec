"""Rewards by matching: they make a reward of a few demonstrations, and practice in an environment."""

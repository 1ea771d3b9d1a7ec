"""Experiments of the family rewards-from-people: what to ask people, and whether reinforcement learning is worth it."""

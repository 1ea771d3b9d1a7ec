"""Learners with a critic: reinforcement learning, with and without a model of goals."""

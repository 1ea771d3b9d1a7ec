"""Reward models, learned or computed, and learners of preferences."""

"""Rewards that are learned or computed, and learners of preferences."""

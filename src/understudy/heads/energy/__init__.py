"""Heads that score actions and take the best."""

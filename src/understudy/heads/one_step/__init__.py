"""Heads that turn noise into a chunk in one step or a few."""

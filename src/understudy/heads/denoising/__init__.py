"""Heads that turn noise into a chunk in several steps."""

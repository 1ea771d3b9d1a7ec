"""Heads that remember the demonstrations."""

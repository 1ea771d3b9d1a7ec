"""Heads, one file each: what the output of a network means."""

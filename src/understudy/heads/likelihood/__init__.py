"""Heads that regress an action or give it a density."""

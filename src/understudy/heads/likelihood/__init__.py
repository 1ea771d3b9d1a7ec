"""Heads that regress an action or give it a probability density."""

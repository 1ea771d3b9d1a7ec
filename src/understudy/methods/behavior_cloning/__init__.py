"""Likelihood and regression: they predict the action, or a distribution over it, at once."""

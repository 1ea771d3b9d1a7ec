"""Likelihood and regression: one network evaluation per plan."""

"""Experiments of the family irl-matching: rewards that match demonstrations, and practice with them."""

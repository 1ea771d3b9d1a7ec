"""Experiments of the family frozen-base: a policy that practises while it stays as it is."""

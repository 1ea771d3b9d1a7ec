"""Experiments of the family hard-to-explore: matching demonstrations where the task is long or ordered."""

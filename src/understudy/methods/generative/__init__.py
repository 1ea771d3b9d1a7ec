"""Iterative generation: a chunk of actions is made from noise in a few steps."""

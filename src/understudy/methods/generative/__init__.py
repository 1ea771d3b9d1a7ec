"""Iterative generation: they make a chunk of actions from noise, in one step or in many."""

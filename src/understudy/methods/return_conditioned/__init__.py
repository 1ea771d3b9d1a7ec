"""Conditioned on returns: they are asked for a return and act as the data that reached it."""

"""Experiments on few or no recorded actions: how to clone then."""

"""Adapters to simulators of other packages, one for each extra."""

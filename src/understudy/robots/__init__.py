"""Robots and teleoperators: drivers, calibration, safety limits, and an environment made of a robot."""

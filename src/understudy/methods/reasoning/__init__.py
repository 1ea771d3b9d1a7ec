"""Policies that first predict how the expert decides, and then the action."""

"""Reasoning: they imitate how the expert found its action, as well as the action."""

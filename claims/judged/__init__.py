"""Experiments of the family judged: what helps a policy if somebody can judge what it does, and not demonstrate."""

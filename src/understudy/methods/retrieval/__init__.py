"""Retrieval: they look up similar situations in the demonstrations."""

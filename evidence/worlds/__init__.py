"""Worlds, sources and measures that claims of several families share."""

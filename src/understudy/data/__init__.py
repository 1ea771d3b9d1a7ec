"""Demonstrations: episodes, windows over them, and what stands between the world's units and the network's."""

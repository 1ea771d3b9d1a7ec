"""Collecting episodes: they collect new episodes in an environment or with a person while they train."""

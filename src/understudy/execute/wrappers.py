"""Wrappers between an actor and an environment."""

from __future__ import annotations

from abc import ABC


class ActionWrapper(ABC):  # noqa: B024 - its methods come with the first wrapper
    """A frozen dataclass: what an actor observes in addition, and what its actions mean."""

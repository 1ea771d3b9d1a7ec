"""Results that several arms of an experiment need, kept within a process."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any


class Memo:
    """Results by key, computed once in a process.

    Args:
        size: Number of results that are kept, the newest ones.
    """

    def __init__(self, size: int = 24):
        self.size = size
        self.results: dict[Hashable, Any] = {}

    def get(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """The result of a key. It is computed if it is not kept."""
        if key not in self.results:
            computed = compute()
            while len(self.results) >= self.size:
                self.results.pop(next(iter(self.results)))
            self.results[key] = computed
        return self.results[key]

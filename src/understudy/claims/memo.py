"""What claims keep within a process, because several arms need it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_results: ContextVar[dict[Memo, dict[Hashable, Any]] | None] = ContextVar("results of memos", default=None)
_kept: dict[Memo, dict[Hashable, Any]] = {}  # of this process


class Memo:
    """Results by key, computed once in a process.

    Args:
        size: Number of results that are kept, the newest ones.
    """

    def __init__(self, size: int = 24):
        self.size = size

    def get(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """The result of a key. It is computed if it is not kept."""
        current = _results.get()
        results = (_kept if current is None else current).setdefault(self, {})
        if key not in results:
            computed = compute()
            while len(results) >= self.size:
                results.pop(next(iter(results)))
            results[key] = computed
        return results[key]


@contextmanager
def empty_memos() -> Iterator[None]:
    """A context in which all memos are empty at first. What they keep outside is the same after it."""
    token = _results.set({})
    try:
        yield
    finally:
        _results.reset(token)

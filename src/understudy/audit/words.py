"""How findings count and list."""

from __future__ import annotations

from collections.abc import Iterable


def count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def listed(items: Iterable, most: int = 8) -> str:
    items = [str(i) for i in items]
    return ", ".join(items[:most]) + (", ..." if len(items) > most else "")

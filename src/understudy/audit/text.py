"""Text helpers for findings: counts and lists."""

from __future__ import annotations

from collections.abc import Iterable


def pluralize(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def format_list(items: Iterable, max_items: int = 8) -> str:
    items = [str(i) for i in items]
    return ", ".join(items[:max_items]) + (", ..." if len(items) > max_items else "")

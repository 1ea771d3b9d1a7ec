"""Where policies act: bundled toys, and adapters to the simulators that others wrote."""

from __future__ import annotations

from collections.abc import Callable

from ..core import UserError
from .base import Env, Obs, Outcome, Pictures, Plane, Replays, Scripted

__all__ = ["Env", "Obs", "Outcome", "Pictures", "Plane", "Replays", "Scripted", "make", "names"]


def _toys() -> dict[str, Callable[..., Env]]:
    from .fork import Fork

    return {"fork": Fork}


def names() -> tuple[str, ...]:
    """Of the bundled toys."""
    return tuple(_toys())


def make(name: str, rows: int = 1, trust: tuple[str, ...] = (), **options) -> Env:
    """`rows` copies of an environment side by side."""
    toys = _toys()
    if name in toys:
        return toys[name](rows, **options)
    raise UserError(f"expected an environment, found {name!r}", do=f"known here: {', '.join(toys)}")

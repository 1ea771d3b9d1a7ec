"""Is this data whole, and is it good? Checks and scores of demonstrations; above evaluate, since scores may need a
policy."""

from .whole import audit, findings, guard, refuse

__all__ = ["audit", "findings", "guard", "refuse"]

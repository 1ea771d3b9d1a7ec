"""Is this data whole, and is it good? Checks and scores of demonstrations; above evaluate, since scores may need a
policy."""

from .runner import audit, check_usable, find_problems, raise_on_errors

__all__ = ["audit", "check_usable", "find_problems", "raise_on_errors"]

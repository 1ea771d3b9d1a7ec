"""Audits of data sets: are they complete, and are the demonstrations good?

The package is above `evaluate`, because some scores need a policy.
"""

from .runner import audit, check_usable, find_problems, raise_on_errors, training_warnings

__all__ = ["audit", "check_usable", "find_problems", "raise_on_errors", "training_warnings"]

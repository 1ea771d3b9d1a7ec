"""Warnings of readers: texts in `metadata["warnings"]`, whose type says what they are about."""

from __future__ import annotations

from collections.abc import Collection, Iterable


class MisreadingWarning(str):
    """A warning of a reader that it may misread the data. Other warnings tell what was left out or corrected."""


class NoActionWarning(str):
    """A warning of a reader that no column is called action, which is dropped where the user names columns."""


class LineOfNamesWarning(str):
    """A warning of a reader about the line of a table that should have the names of its columns."""


class ArrayWarning(str):
    """A warning of a reader about one array, which is dropped where the user says how the array is read.

    Attributes:
        key: Name of the array. The text begins with it.
    """

    key: str = ""

    @classmethod
    def about(cls, key: str, text: str) -> ArrayWarning:
        """Returns the warning about an array."""
        warning = cls(f"{key}: {text}")
        warning.key = key
        return warning


def without_arrays(warnings: Iterable[str], keys: Collection[str]) -> list[str]:
    """Returns the warnings that are not about some arrays."""
    return [w for w in warnings if not (isinstance(w, ArrayWarning) and w.key in keys)]

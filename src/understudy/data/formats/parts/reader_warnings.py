"""Warnings of readers: texts in `metadata["warnings"]`. The type of a warning says what it is about."""

from __future__ import annotations

from collections.abc import Collection, Iterable


class MisreadingWarning(str):
    """A warning that a reader may misread the data. Other warnings tell what was left out or corrected."""


class NoActionWarning(str):
    """A warning that no column is called action. It is dropped if the user names the columns."""


class LineOfNamesWarning(str):
    """A warning about the first line of a table, which should have the names of its columns."""


class ArrayWarning(str):
    """A warning about one array, which is dropped if the user says how to read the array.

    Attributes:
        key: Name of the array. The text begins with it.
    """

    key: str = ""

    @classmethod
    def about(cls, key: str, text: str) -> ArrayWarning:
        """Builds the warning about an array."""
        warning = cls(f"{key}: {text}")
        warning.key = key
        return warning


def without_arrays(warnings: Iterable[str], keys: Collection[str]) -> list[str]:
    """Returns the warnings that are not about some arrays."""
    return [w for w in warnings if not (isinstance(w, ArrayWarning) and w.key in keys)]

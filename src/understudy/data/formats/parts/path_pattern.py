"""Fills path patterns of LeRobot data sets, such as "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"."""

from __future__ import annotations

import re

_FIELD = re.compile(r"\{(\w+)(?::0(\d)d)?\}")


def fill_pattern(pattern: str, **values: object) -> str:
    """Returns the path that a pattern makes of these values.

    Only the fields that LeRobot writes are accepted: a name, or a number with up to nine digits. `str.format` would
    also accept a width of gigabytes, and attributes of the values.

    Raises:
        KeyError: The pattern has a field without a value.
        ValueError: It has another kind of field, or a field of digits with a value that is not an integer.
    """
    if re.search(r"[{}]", _FIELD.sub("", pattern)):
        raise ValueError(f"{pattern!r} has a field that is neither a name nor a number of digits")

    def value_of(field: re.Match[str]) -> str:
        name, digits = field.groups()
        return format(values[name], f"0{digits}d") if digits else str(values[name])

    return _FIELD.sub(value_of, pattern)

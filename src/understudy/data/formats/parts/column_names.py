"""Standard column names, and their translation from and to the names in other formats."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from ....core import Feature, role
from ...episode import Episode

FLAG_COLUMNS = ("next.terminated", "next.truncated", "next.success")  # each step has them or has them not
OUTCOME_COLUMNS = {"reward": "next.reward", "rewards": "next.reward", "terminated": "next.terminated",
                   "truncated": "next.truncated", "success": "next.success"}
_OURS = {"state": "observation.state", "states": "observation.state", "observation": "observation.state",
         "observations": "observation.state", "obs": "observation.state", "action": "action", "actions": "action",
         "task": "task", "language_instruction": "task", "timestamp": "timestamp", **OUTCOME_COLUMNS}


def standard_name(key: str, kind: str = "vector", others: str = "") -> str:
    """Returns the standard name of an array.

    Args:
        kind: `Feature.kind`.
        others: Prefix for names that are not known, such as ``"observation."``.
    """
    if role(key) != "other":
        return key
    if kind == "image" and key not in OUTCOME_COLUMNS:
        return f"observation.images.{key}"
    return _OURS.get(key.lower()) or others + key


def shortest_keys(features: Mapping[str, Feature], read: Callable[[str, Feature], str]) -> dict[str, str]:
    """Chooses the shortest key for each column such that no two columns become one when they are read.

    Columns without a possible key are missing.

    Args:
        read: Returns the column that a key becomes when it is read.
    """
    keys, taken = {}, set()
    for name in sorted(features, key=lambda n: role(n) == "other"):
        short = name.removeprefix("observation.images.").removeprefix("observation.").removeprefix("next.")
        for key in dict.fromkeys((short, name)):
            column = read(key, features[name])
            free = column not in taken and key.lower() not in {k.lower() for k in keys.values()}  # disks know one case
            if free and key in (name, short if column == name else name) and re.fullmatch(r"\w[\w.\-]*", key):
                keys[name] = key
                taken.add(column)
                break
    return {name: keys[name] for name in features if name in keys}


def text_column(texts: Sequence[str] | np.ndarray) -> np.ndarray:
    """Converts text to a column, (rows, *shape). If all rows have the same single text, it is stored once."""
    values = np.asarray(texts, np.str_)
    same = values.ndim == 1 and len(values) and (values == values[0]).all()
    return np.broadcast_to(values[:1], values.shape) if same else values


def are_flags(values: np.ndarray) -> bool:
    """Returns whether all values are flags: bool, or numbers that are 0 or 1."""
    return values.dtype == bool or bool(((values == 0) | (values == 1)).all())


def is_plain_flag(data: Iterable[Episode], name: str) -> bool:
    """Returns whether a column is not named like a flag, or has only the values 0 and 1."""
    return name not in FLAG_COLUMNS or all(are_flags(np.asarray(e.steps[name])) for e in data)


def number_sort_key(name: str) -> tuple:
    """Returns a sort key that orders names by their last number: episode_2 before episode_10."""
    numbers = re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else -1, name


def format_list(items: Iterable, most: int = 8) -> str:
    """Joins items with commas, for a message.

    Args:
        most: Number of items that are named. Only the number of the remaining items is given.
    """
    items = [str(i) for i in items]
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def sort_numbered(names: Iterable[str], prefix: str) -> list[str]:
    """Returns the names that are a prefix and digits, ordered by their number: demo_2 before demo_10."""
    matches = [n for n in names if isinstance(n, str) and re.fullmatch(f"{prefix}[0-9]+", n)]
    return sorted(matches, key=lambda n: (int(n[len(prefix):]), n))


def array_key(name: str, keys: Iterable[str]) -> str | None:
    """Returns the key of the array that a user's name means. It may have "." for "/", and a component number."""
    keys = list(keys)
    for text in (name, re.sub(r"\[\d+\]$|_\d+$", "", name)):
        for key in keys:
            if text in (key, key.replace("/", ".")) or text.strip("/") == key:
                return key
    return None

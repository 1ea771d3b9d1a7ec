"""Checks of the flags that environments report for each row: success, terminated, truncated."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ..core import UserCodeError

SUCCESS_KEYS: tuple[str, ...] = ("success", "is_success")  # what infos call it


def check_flag(value: object, name: str, where: str) -> bool:
    """Returns a flag of one row as a bool. Raises an error if it is not True or False.

    Args:
        value: True, False, 0 or 1, or an array or tensor with one such element.
        name: What the environment calls it, such as "success".
        where: The place that the message names.

    Raises:
        UserCodeError: The value is anything else, such as a degree, a word, NaN, or several values.
    """
    if (number := _number(value)) in (0, 1):
        return bool(number)
    raise UserCodeError(f"reports {name} as {_short(value)}, which is not one True or False", where=where,
                        hint="report True or False, such as whether a degree is above a bound, and anything else under "
                             "another name")


def check_flags(values: object, name: str, live: np.ndarray, where: str) -> np.ndarray:
    """Returns a flag of all rows as (rows,) bool. Raises an error if it is not True or False for each.

    Args:
        values: One value per row, as `check_flag` takes them, or None for a row that reports nothing.
        live: Rows whose values count, (rows,) bool. The remaining rows may have any value.

    Raises:
        UserCodeError: There is not one value per row, or `check_flag` refuses the value of a live row.
    """
    if isinstance(values, Tensor):
        values = values.numpy()
    if isinstance(values, np.ndarray) and values.dtype == bool and values.shape == live.shape:
        return values.copy()
    is_list = isinstance(values, (list, tuple)) or isinstance(values, np.ndarray) and values.ndim > 0
    if not is_list or len(values) != len(live):
        raise UserCodeError(f"reports {name} as {_short(values)}, which is not one value for each of its {len(live)} "
                            "rows", where=where, hint="report an array of bool with one element per row")
    return np.array([value is not None and (check_flag(value, name, where) if is_live else _number(value) == 1)
                     for value, is_live in zip(values, live.tolist(), strict=True)])


def _number(value: object) -> float | None:
    """Returns the number that a value holds. None if it holds anything else, or several numbers."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # lists of different lengths, tensors on another device
        return None
    return array.item() if array.size == 1 and array.dtype.kind in "biuf" else None


def _short(value: object) -> str:
    text = " ".join((f"{value}" if isinstance(value, np.number) else repr(value)).split())
    return text if len(text) <= 60 else f"{text[:57]}..."

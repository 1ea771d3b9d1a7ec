"""Arrow tables as arrays: nested lists of one length, text, encoded images."""

from __future__ import annotations

from contextlib import AbstractContextManager

import numpy as np
import pyarrow as pa

from ...core import UserError
from . import read_errors

_DAMAGE = "the file is cut short or damaged: take it from a copy"


def arrow_errors(where: object) -> AbstractContextManager[None]:
    """What pyarrow raises on damage as a UserError that says where."""
    return read_errors.as_user_error("Arrow data", where, _DAMAGE, (
        pa.ArrowException, OSError, KeyError, ValueError, TypeError, MemoryError, OverflowError, SystemError))


def validate_table(table: pa.Table, where: object) -> pa.Table:
    """With offsets that lie in its buffers, and text that is text: nothing checks them when they are used."""
    with arrow_errors(where):
        table.validate(full=True)
    return table


def to_numpy(array: pa.Array, where: str) -> np.ndarray:
    """(rows, *shape) of numbers or text. Raises UserError where rows differ in length, lack, or are no such thing."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks() if array.num_chunks != 1 else array.chunk(0)
    if array.null_count:
        raise UserError("expected a value in every row, found none",
                        where=f"{where}, row {array.is_null().to_pylist().index(True)}", hint=_DAMAGE)
    kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        widths = np.unique(array.value_lengths().to_numpy(zero_copy_only=False))
        if len(widths) > 1:
            raise UserError(f"expected rows of one length, found {', '.join(map(str, widths[:5]))}", where=where,
                            hint=_DAMAGE)
        inner = to_numpy(array.flatten(), where)
        width = int(widths[0]) if len(widths) else 0
        return inner.reshape(len(array), width, *inner.shape[1:])
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        out = np.empty(len(array), object)
        out[:] = array.to_pylist()
        return out
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise UserError(f"expected numbers or text, found {kind}", where=where, hint=_DAMAGE)
    return array.to_numpy(zero_copy_only=False)

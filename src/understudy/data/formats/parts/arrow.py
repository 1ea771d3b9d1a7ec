"""Conversion of Arrow tables to NumPy arrays."""

from __future__ import annotations

from contextlib import AbstractContextManager

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from . import read_errors
from .read_errors import damaged


def arrow_errors(where: object, what: str = "the Arrow data") -> AbstractContextManager[None]:
    """Turns the errors that pyarrow raises about damage into `UserError`. Returns a context manager."""
    return read_errors.as_user_error(what, where, (
        pa.ArrowException, OSError, KeyError, ValueError, TypeError, MemoryError, OverflowError, SystemError))


def validate_table(table: pa.Table, where: object) -> pa.Table:
    """Returns the table if its offsets are in its buffers and its text is UTF-8, which pyarrow does not check."""
    with arrow_errors(where):
        table.validate(full=True)
    return table


def to_numpy(array: pa.Array | pa.ChunkedArray, where: str) -> np.ndarray:
    """Converts an Arrow column to an array.

    Args:
        array: Numbers or text without missing values, or lists of them of equal length, nested or not.

    Returns:
        Numbers or str objects, (rows, *shape).
    """
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks() if array.num_chunks != 1 else array.chunk(0)
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    kind = array.type
    if array.null_count:
        raise damaged("the row has no value", f"{where}, row {array.is_null().to_pylist().index(True)}")
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = pc.call_function("min_max", [pc.call_function("list_value_length", [array])]).as_py()
        if lengths["min"] != lengths["max"]:
            raise damaged(f"the rows have from {lengths['min']} to {lengths['max']} values", where)
        inner = to_numpy(array.flatten(), where)
        return inner.reshape(len(array), lengths["min"] or 0, *inner.shape[1:])
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        out = np.empty(len(array), object)
        out[:] = array.to_pylist()
        return out
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise damaged(f"the values are neither numbers nor text but {kind}", where)
    return array.to_numpy(zero_copy_only=False)

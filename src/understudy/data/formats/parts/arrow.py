"""Conversion of Arrow tables to NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from . import read_errors
from .read_errors import damaged

_MAX_SURPLUS_ROWS = 1_000_000  # rows of no episode, which are skipped


def arrow_errors(where: object, what: str = "the Arrow data") -> AbstractContextManager[None]:
    """Turns the errors that pyarrow raises about damage into `UserError`. Returns a context manager."""
    return read_errors.as_user_error(what, where, (
        pa.ArrowException, OSError, KeyError, ValueError, TypeError, MemoryError, OverflowError, SystemError))


def validate_table(table: pa.Table, where: object) -> pa.Table:
    """Returns the table if its offsets are in its buffers and its text is UTF-8, which pyarrow does not check."""
    with arrow_errors(where):
        table.validate(full=True)
    return table


def check_decoded_size(metadata: pq.FileMetaData, sizes: Mapping[str, int], n_rows: int, where: object) -> None:
    """Refuses a Parquet file that is small because it is compressed, but has columns that would fill the memory.

    Args:
        sizes: Declared number of values in a row, by column.
        n_rows: Number of rows of all episodes.
    """
    surplus = metadata.num_rows - n_rows
    if surplus > _MAX_SURPLUS_ROWS:
        raise damaged(f"it has {metadata.num_rows:,} rows, {surplus:,} more than all episodes", where)
    for group in (metadata.row_group(i) for i in range(metadata.num_row_groups)):
        for column in (group.column(j) for j in range(group.num_columns)):
            name = column.path_in_schema.partition(".list.")[0]
            if name in sizes and column.num_values > group.num_rows * sizes[name]:
                raise damaged(f"it has {column.num_values:,} values, but the shape in meta/info.json says "
                              f"{group.num_rows * sizes[name]:,}", f"{where}, {name}")


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

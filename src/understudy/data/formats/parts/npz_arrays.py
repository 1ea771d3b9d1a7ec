"""Arrays in an .npz file, which may be larger than memory: they are read and written in chunks.

Python objects (pickles) are refused.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import IO

import numpy as np

from ....core import Feature, UserError, tensor_dtype
from ... import cache
from ...episode import Dataset
from ...sources import MemmapSource
from . import read_errors
from .key_map import encoded_image_feature
from .read_errors import damaged

_CHUNK = 1 << 16  # rows read at a time
_FIRST_ROWS = 16  # the first row that is not empty says whether rows are encoded images


def is_storable_key(name: str) -> bool:
    """Returns whether an array in a zip file can have this name."""
    return bool(name) and name.isprintable() and "\\" not in name and not name.startswith("/") and ".." not in name


class PickledArray(UserError):
    """Raised when an array is a pickle, which is never loaded."""


class NpzArrays:
    """The arrays of an .npz file, read in chunks. Long doubles, which tensors cannot have, become float64.

    Args:
        without: Names of arrays that are ignored.

    Attributes:
        headers: Shape and dtype of each array. The arrays are not read for it.
        without: Names of the ignored arrays that the file has.
    """

    def __init__(self, path: Path, without: Iterable[str] = ()):
        with zip_errors("the .npz file", path), zipfile.ZipFile(path) as archive:
            sizes = {i.filename[:-4]: i.file_size for i in archive.infolist() if i.filename.endswith(".npy")}
        self.path, self.without = path, {*without}.intersection(sizes)
        self.headers: dict[str, tuple[tuple[int, ...], str]] = {}
        for key in sizes:
            if key not in self.without:
                with _member(path, key) as handle:
                    shape, _, dtype = read_header(handle, f"{path}, {key}")
                    n_missing = math.prod(shape) * dtype.itemsize - (sizes[key] - handle.tell())
                if n_missing > 0:  # a few bytes may say that they are gigabytes, and room would be made for them
                    raise _cut_short(n_missing, f"{path}, {key}")
                self.headers[key] = shape, tensor_dtype(dtype)

    @cached_property
    def key(self) -> str:
        """Digest of the time of the file and the checksums of its arrays. Time and size alone may be equal for two
        files."""
        with zipfile.ZipFile(self.path) as archive:
            arrays = [[i.filename, i.CRC, i.file_size] for i in archive.infolist()]
        return cache.json_digest("npz", self.path.stat().st_mtime_ns, arrays)

    def read_array(self, key: str) -> np.ndarray:
        """Reads a whole array. A single number has the shape (1,)."""
        parts = [values for _, values in self.iter_rows(key)]
        return np.concatenate(parts) if parts else np.empty(*self.headers[key])

    def encoded_images(self, key: str) -> Feature | None:
        """Returns the feature of images if an array (rows, bytes) holds PNG or JPEG images, and otherwise None."""
        shape, dtype = self.headers[key]
        if len(shape) != 2 or np.dtype(dtype) != np.uint8:
            return None
        first = (values[0] for _, values in islice(self.iter_rows(key, 1), _FIRST_ROWS))
        return encoded_image_feature(first, f"{self.path}, {key}")

    def iter_rows(self, key: str, max_bytes: int = 1 << 23) -> Iterator[tuple[int, np.ndarray]]:
        """Reads an array in chunks. It is decompressed as it is read.

        Args:
            max_bytes: Largest size of a chunk, except for one row and for arrays in Fortran order.

        Yields:
            Number of the first row, and the rows, (n, *shape).
        """
        location = f"{self.path}, {key}"
        with _member(self.path, key) as handle:
            shape, fortran, dtype = read_header(handle, location)
            if not shape or fortran and len(shape) > 1:  # columns first: rows cannot be had in pieces
                data = _read_exactly(handle, int(np.prod(shape)) * dtype.itemsize, location)
                values = np.frombuffer(data, dtype).reshape(shape or (1,), order="F")
                yield 0, values.astype(tensor_dtype(dtype), copy=False)
                return
            width = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
            step = max(1, min(_CHUNK, max_bytes // max(width, 1)))
            for row in range(0, shape[0], step):
                n = min(step, shape[0] - row)
                rows = np.frombuffer(_read_exactly(handle, n * width, location), dtype).reshape(n, *shape[1:])
                yield row, rows.astype(tensor_dtype(dtype), copy=False)


class NpzArchiveSource(MemmapSource):
    """A source with arrays of one .npz file as columns.

    Text is cached like numbers, because an archive cannot be read from the middle.

    Attributes:
        keys: Name of the array of each column that has one.
        computed: Rows of the columns that have no array.
    """

    keys: dict[str, str]
    computed: Mapping[str, np.ndarray] = MappingProxyType({})
    _file: NpzArrays

    @property
    def numeric_columns(self):
        return list(self.schema)

    @cached_property
    def _layout(self):
        return {name: (shape, self._file.headers[self.keys[name]][1] if dtype == "string" else dtype)
                for name, (shape, dtype) in super()._layout.items()}

    def iter_chunks(self):
        yield from ((name, 0, values) for name, values in self.computed.items())
        for name, key in self.keys.items():
            for row, values in self._file.iter_rows(key):
                yield name, *self.place_rows(name, row, values)

    def place_rows(self, name: str, row: int, values: np.ndarray) -> tuple[int | np.ndarray, np.ndarray]:
        """Assigns rows of an array to rows of its column. A subclass may leave rows out.

        Args:
            row: Number of the first row in the array.
            values: The rows, (n, *shape).

        Returns:
            The number of the first row in the column, or of each row, and the rows that belong to the column.
        """
        return row, values


ArrayChunks = tuple[str, tuple[int, ...], np.dtype | str, Callable[[], Iterable[np.ndarray]]]


def whole_array(name: str, values: np.ndarray) -> ArrayChunks:
    """Prepares an array in memory for `write_npz`."""
    return name, values.shape, values.dtype, lambda: [values]


def column_array(data: Dataset, name: str, key: str, rows: np.ndarray) -> ArrayChunks:
    """Prepares a column of all episodes for `write_npz`.

    Args:
        rows: Number of rows to write of each episode, (E,). If the column has one row less, its last row is repeated.
    """
    feature, pieces = data.features()[name], partial(column_pieces, data, name, rows)
    return key, (int(rows.sum()), *feature.shape), stored_dtype(feature, pieces), pieces


def column_pieces(data: Dataset, name: str, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the rows of a column by episode, as `column_array` writes them."""
    for e, n in zip(data, rows.tolist(), strict=True):
        column = np.asarray(e.steps[name])
        yield column[:n] if len(column) >= n else np.concatenate([column, column[-1:]])


def stored_dtype(feature: Feature, pieces: Callable[[], Iterable[np.ndarray]]) -> np.dtype:
    """Returns the dtype of a column in a file. For text it has the width of the longest value in `pieces`."""
    if feature.kind != "string":
        return np.dtype(feature.dtype)
    return np.dtype(f"U{max((len(str(v)) for piece in pieces() for v in np.ravel(piece)), default=1) or 1}")


def write_npz(path: Path, arrays: Iterable[ArrayChunks]) -> None:
    """Writes an .npz file.

    Args:
        arrays: (name, shape, dtype, pieces) of each array. `pieces()` returns the rows in order, in arrays of any
            length.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, shape, dtype, pieces in arrays:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as out:
                np.lib.format.write_array_header_2_0(out, {
                    "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape})
                for piece in pieces():
                    out.write(np.ascontiguousarray(piece, dtype).tobytes())


def split_rows(pieces: Iterator[np.ndarray], rows: Iterable[int]) -> Iterator[np.ndarray]:
    """Cuts rows that come in arrays of any length into arrays of other lengths."""
    piece = np.empty(0)
    for n in rows:
        parts: list[np.ndarray] = []
        while n:
            piece = piece if len(piece) else next(pieces)
            parts.append(piece[:n])
            piece, n = piece[n:], n - len(parts[-1])
        yield parts[0] if len(parts) == 1 else np.concatenate(parts)


def zip_errors(what: str, where: object) -> AbstractContextManager[None]:
    """Turns the errors that zipfile raises about damage into `UserError`. Returns a context manager."""
    return read_errors.as_user_error(what, where, read_errors.ZIP_ERRORS)


@contextmanager
def _member(path, key):
    with zip_errors("the array", f"{path}, {key}"), zipfile.ZipFile(path) as archive, \
            archive.open(f"{key}.npy") as handle:
        yield handle


def npy_header(handle: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Reads shape, order (whether Fortran's) and dtype of an .npy file. Raises ValueError."""
    version = np.lib.format.read_magic(handle)
    return (np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0)(handle)


def read_header(handle: IO[bytes], where: object) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Reads the header of an .npy file of numbers or text: see `npy_header`."""
    try:
        shape, fortran, dtype = npy_header(handle)
    except ValueError as error:
        raise damaged(f"this is not a NumPy array ({error})", where) from None
    if dtype.hasobject or dtype.kind not in "biufU":
        hint = "save the array again with numbers or text only"
        if dtype.hasobject:
            raise PickledArray("it contains Python objects (a pickle), which are never loaded", where=where, hint=hint)
        raise UserError(f"it contains values of dtype {dtype}", where=where, hint=hint)
    return shape, fortran, dtype


def _read_exactly(handle, size, where) -> bytes:
    data = handle.read(size)
    if len(data) != size:
        raise _cut_short(size - len(data), where)
    return data


def _cut_short(n_missing: int, where: object) -> UserError:
    return damaged(f"the array is cut short: {n_missing} bytes are missing", where)

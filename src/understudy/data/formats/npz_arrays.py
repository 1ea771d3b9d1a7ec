"""Arrays in an .npz file, larger than memory: read in pieces, written in pieces. Objects (pickles) are refused."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np

from ...core import UserError
from .. import cache
from . import read_errors

_CHUNK = 1 << 16  # rows read at a time


class NpzArrays:
    """What is in an .npz file. headers: shape and dtype of each array, none of which is read. without: arrays that
    are not to be looked at; those of them that it has."""

    def __init__(self, path: Path, without: Iterable[str] = ()):
        self.path, self.without = path, set(without)
        self.headers = read_headers(path, self.without)
        with zipfile.ZipFile(path) as archive:
            self.without &= {n[:-4] for n in archive.namelist()}

    @cached_property
    def key(self) -> str:
        """Of its time, and of the checksums that it has of its arrays: two files may be of the same time and size."""
        with zipfile.ZipFile(self.path) as archive:
            arrays = [[i.filename, i.CRC, i.file_size] for i in archive.infolist()]
        return cache.json_digest("npz", self.path.stat().st_mtime_ns, arrays)

    def read_array(self, key: str) -> np.ndarray:
        """A whole array, in memory; a single number has the shape (1,)."""
        parts = [values for _, values in self.iter_rows(key)]
        return np.concatenate(parts) if parts else np.empty(*self.headers[key])

    def iter_rows(self, key: str, max_bytes: int = 1 << 23) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows) pieces of an array, of `most` bytes, decompressed as they are read."""
        with _member(self.path, key) as handle:
            shape, fortran, dtype = _header(handle, f"{self.path}, {key}")
            if not shape:
                yield 0, np.frombuffer(_read_exactly(handle, dtype.itemsize, f"{self.path}, {key}"), dtype)
                return
            if fortran and len(shape) > 1:  # columns first: rows cannot be had in pieces
                data = _read_exactly(handle, int(np.prod(shape)) * dtype.itemsize, f"{self.path}, {key}")
                yield 0, np.frombuffer(data, dtype).reshape(shape, order="F")
                return
            width = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
            step = max(1, min(_CHUNK, max_bytes // max(width, 1)))
            for row in range(0, shape[0], step):
                n = min(step, shape[0] - row)
                data = _read_exactly(handle, n * width, f"{self.path}, {key}")
                yield row, np.frombuffer(data, dtype).reshape(n, *shape[1:])


def read_headers(path: Path, without: Iterable[str] = ()) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each array of an .npz, none of which is read. Objects are refused."""
    out = {}
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if n.endswith(".npy") and n[:-4] not in without]
    except read_errors.ZIP_ERRORS as error:
        raise UserError(f"expected an .npz file, found one that is cut short or damaged ({error})", where=path,
                        hint="take it from a copy") from None
    for name in names:
        key = name[:-4]
        with _member(path, key) as handle:
            shape, _, dtype = _header(handle, f"{path}, {key}")
            out[key] = shape, dtype.str
    return out


ArrayChunks = tuple[str, tuple[int, ...], np.dtype | str, Callable[[], Iterable[np.ndarray]]]


def write_npz(path: Path, arrays: Iterable[ArrayChunks]) -> None:
    """An .npz file of (name, shape, dtype, pieces): `pieces()` gives the rows in order, in arrays of any length."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, shape, dtype, pieces in arrays:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as out:
                np.lib.format.write_array_header_2_0(out, {
                    "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape})
                for piece in pieces():
                    out.write(np.ascontiguousarray(piece, dtype).tobytes())


@contextmanager
def _member(path, key):
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as handle:
            yield handle
    except UserError:
        raise
    except read_errors.ZIP_ERRORS as error:
        raise UserError(f"expected a whole array, found damage ({error})", where=f"{path}, {key}",
                        hint="take the file from a copy") from None


def _header(handle, where):
    form = np.lib.format
    try:
        version = form.read_magic(handle)
        read = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
        shape, fortran, dtype = read(handle)
    except ValueError as error:
        raise UserError(f"expected a NumPy array, found something else ({error})", where=where,
                        hint="take the file from a copy") from None
    if dtype.hasobject:
        raise UserError("expected numbers or text, found Python objects (a pickle), which are never loaded",
                        where=where, hint="save the array again with numbers or text only")
    if dtype.kind not in "biufU":
        raise UserError(f"expected numbers or text, found dtype {dtype}", where=where,
                        hint="save the array again with numbers or text only")
    return shape, fortran, dtype


def _read_exactly(handle, size, where) -> bytes:
    data = handle.read(size)
    if len(data) != size:
        raise UserError(f"expected {size} more bytes, found {len(data)}: the array is cut short", where=where,
                        hint="take the file from a copy")
    return data

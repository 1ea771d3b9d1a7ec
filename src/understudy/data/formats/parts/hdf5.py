"""Reading and writing of HDF5 files, shared by the formats that are stored in them.

h5py raises many kinds of errors on a damaged file. Here each becomes a `UserError` that names the file. Links to other
files, virtual arrays and external arrays are refused. If a format needs an array that the data do not have, it is
written with the attribute FILLED_ATTRIBUTE ("all", or "last" for the row after the last action) and is not read as a
column again.
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import sys
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ....core import DataError, Feature, UserError, role, tensor_dtype
from ....hints import columns_option
from ...episode import Dataset, Episode
from . import read_errors, sidecar
from .key_map import KeyMap, encoded_image_feature, stored_feature
from .read_errors import DAMAGED_HINT, damaged

FILLED_ATTRIBUTE = "understudy_filled"
COLUMNS_ATTRIBUTE = "understudy_columns"  # their order and kinds, in files that we wrote
_DEEP = 16  # nested groups; a link to a group above it would have no end


@cache
def import_h5py():
    """Imports h5py, which is optional."""
    return read_errors.import_optional("h5py", "HDF5 files need h5py", "formats")


def hdf5_errors(where: object) -> AbstractContextManager[None]:
    """Turns the errors that h5py raises about damage into `UserError`. Returns a context manager."""
    return read_errors.as_user_error("the HDF5 file", where, (
        OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError))


class _CheckedFile:
    """A file object that checks the heaps of texts and byte strings before the HDF5 library, which may hang, reads it.

    The library (2.0 and before) hangs at an object of size 0, which zeros on a damaged disk look like.
    """

    def __init__(self, path: Path):
        self._file, self._at = os.open(path, os.O_RDONLY), 0
        weakref.finalize(self, os.close, self._file)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (os.fstat(self._file).st_size if whence == os.SEEK_END else 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:  # h5py recognizes a file by this method, but does not call it
        raise NotImplementedError

    def readinto(self, buffer) -> int:
        n = os.preadv(self._file, [buffer], self._at)  # a forked process has the same file: it must not seek
        if bytes(buffer[:5]) == b"GCOL\1":
            self._walk(self._at)
        return n

    def _walk(self, begin: int) -> None:
        """Checks a global heap of an HDF5 file (File Format Specification III.E)."""
        end = int.from_bytes(os.pread(self._file, 8, begin + 8), "little")
        heap = os.pread(self._file, min(end, os.fstat(self._file).st_size - begin), begin)
        offset = 16
        while offset + 16 <= end:
            number = int.from_bytes(heap[offset: offset + 2], "little")
            size = int.from_bytes(heap[offset + 8: offset + 16], "little")
            size = 16 + -(-size // 8) * 8 if number else size
            if not 16 <= size <= end - offset:
                raise OSError(f"an object of {size} bytes in the heap at byte {begin}")
            offset += size

    def flush(self) -> None:
        pass


def open_file(path: Path):
    """Opens a file for reading without a lock. Other processes may have it open, and not all disks have locks."""
    plain = sys.platform == "win32"  # Windows has no preadv
    return import_h5py().File(path if plain else _CheckedFile(path), "r", locking=False)


@dataclass(frozen=True)
class ContiguousLayout:
    """Position of an array in an HDF5 file, if its numbers are stored one after another as in NumPy.

    Args:
        offset: First byte in the file.
    """

    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]


class OpenFiles:
    """Cache of open HDF5 files by path, of which only the last one stays open. A context manager.

    Args:
        layouts: The layout of arrays of a single file, by key. Their rows are read without the HDF5 library, which is
            much faster for small arrays.
    """

    def __init__(self, layouts: Mapping[str, ContiguousLayout] = MappingProxyType({})):
        self._path, self._file, self._bytes, self._layouts = None, None, None, layouts

    def __enter__(self) -> OpenFiles:
        return self

    def __exit__(self, *error) -> None:
        for file in (self._file, self._bytes):
            if file is not None:
                file.close()
        self._path = self._file = self._bytes = None

    def __getitem__(self, path: Path):
        self._close_other(path)
        if self._file is None:
            with hdf5_errors(path):
                self._file = open_file(path)
        return self._file

    def read_rows(self, path: Path, key: str, first: int, stop: int, where: str) -> np.ndarray:
        """Reads rows of the array `key` of a file, (stop - first, *shape)."""
        layout = self._layouts.get(key)
        if layout is None or not 0 <= first < stop <= layout.shape[0]:
            return read_column(self[path], key, first, stop, where)
        self._close_other(path)
        out = np.empty((stop - first, *layout.shape[1:]), layout.dtype)
        with hdf5_errors(where):
            if self._bytes is None:
                self._bytes = io.FileIO(path)
            self._bytes.seek(layout.offset + first * (out.nbytes // len(out)))
            if self._bytes.readinto(out.reshape(-1).view(np.uint8).data) != out.nbytes:
                raise OSError("the file is cut short")
        return out

    def _close_other(self, path: Path) -> None:
        if path != self._path:
            self.__exit__()
            self._path = path


class ArrayInfo:
    """An array in an HDF5 file, as a light replacement of h5py.Dataset that is ten times as fast to create.

    Args:
        handle: The h5py.h5d.DatasetID.
        layout: Its creation properties. None for an array that is stored contiguously in this file.
    """

    def __init__(self, handle, layout):
        self.id, self._layout, self.shape, self._type = handle, layout, handle.shape, handle.get_type()
        self.dtype = self._type.dtype

    @property
    def layout(self) -> ContiguousLayout | None:
        if self._layout is not None or self.dtype.kind not in "biuf" or not self.size \
                or not self._type.equal(_type_of(self.dtype)):
            return None
        return ContiguousLayout(self.id.get_offset(), self.dtype, self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def filled_marker(self) -> str:
        is_filled = import_h5py().h5a.exists(self.id, FILLED_ATTRIBUTE.encode())
        return self.values.attrs[FILLED_ATTRIBUTE] if is_filled else ""

    @property
    def has_unwritten_chunks(self) -> bool:
        """Whether parts of the array were never written, which are read as zeros."""
        if self._layout is None or not self.size:
            return False
        if self._layout.get_layout() != import_h5py().h5d.CHUNKED:
            return self.id.get_storage_size() == 0
        n_chunks = math.prod(-(-n // c) for n, c in zip(self.shape, self._layout.get_chunk(), strict=True))
        return self.id.get_num_chunks() < n_chunks

    @cached_property
    def values(self):
        return import_h5py().Dataset(self.id)

    def __getitem__(self, rows):
        return self.values[rows]


@lru_cache(64)
def _type_of(dtype: np.dtype):
    return import_h5py().h5t.py_create(dtype, logical=True)


def arrays(group, where: str) -> dict[str, ArrayInfo]:
    """Lists the arrays in an HDF5 group and its groups by path, such as "obs/object", in the order of h5py."""
    return dict(_walk(import_h5py(), group.id, "", where, 0))


def _walk(h5py, group, prefix, where, depth):
    for key in group:
        try:
            name = key.decode("utf-8")
        except UnicodeDecodeError:
            raise damaged("the name is not UTF-8", f"{where}/{prefix}{key}") from None
        location = f"{where}/{prefix}{name}"
        if (outside := group.links.get_info(key).type == h5py.h5l.TYPE_EXTERNAL) or depth > _DEEP:
            defect = "a link to another file, which is not followed" if outside else "nested without end"
            raise UserError(f"this is {defect}", where=location, hint="copy the array into the file")
        with hdf5_errors(location):
            node = h5py.h5o.open(group, key)
            if isinstance(node, h5py.h5d.DatasetID):
                layout = node.get_create_plist() if node.get_offset() is None else None
                if layout and (layout.get_layout() == h5py.h5d.VIRTUAL or layout.get_external_count()):
                    raise UserError("the array is stored in another file, which is not read", where=location,
                                    hint="copy the array into the file")
                yield f"{prefix}{name}", ArrayInfo(node, layout)
        if isinstance(node, h5py.h5g.GroupID):
            yield from _walk(h5py, node, f"{prefix}{name}/", where, depth + 1)


def count_steps(arrays: Mapping[str, ArrayInfo], key: str, where: str, stated: Any = None,
                hint: str = "leave the episode out, or take the file from a copy") -> int:
    """Returns the number of steps of an episode: the rows of its array `key`.

    Args:
        stated: Name and value of an attribute that must have the same number. None if there is none.
        hint: What to do if there is no such array.
    """
    if key not in arrays or not arrays[key].shape:
        raise UserError(f"there is no array {key}; there are {', '.join(arrays) or 'no arrays'}", where=where,
                        hint=hint)
    steps = arrays[key].shape[0]
    if stated is not None and (np.shape(stated[1]) != () or stated[1] != steps):
        raise UserError(f"{stated[0]} is {stated[1]}, but {key} has {steps} rows", where=where,
                        hint="correct the attribute, or take the file from a copy")
    if not steps:
        raise UserError("the episode has no steps", where=f"{where}, {key}", hint="remove the episode")
    return steps


def check_rows(array: ArrayInfo, rows: int, what: str, where: str, hint: str = "") -> None:
    """Checks the number of rows of an array.

    Args:
        what: Why it needs them, for the error message, such as "as actions has".
        hint: What to do otherwise. By default, where the layout is one's own, to say where episodes end.
    """
    if array.shape[0] != rows:
        raise DataError(f"it has {array.shape[0]} rows instead of {rows}, {what}", where=where,
                        hint=hint or f"{DAMAGED_HINT}. If the layout is your own, say where episodes end: "
                             f"{columns_option('episode_lengths=ARRAY')} or episode=ARRAY")


def warn_of_holes(arrays: Mapping[str, ArrayInfo], episode: str, warnings: list[str]) -> None:
    """Adds a warning to the data set that names the arrays with parts that were never written."""
    if holes := [key for key, array in arrays.items() if array.has_unwritten_chunks]:
        warnings.append(f"{episode}: parts of {', '.join(holes)} were never written, and read as zeros")


def is_variable_bytes(array) -> bool:
    """Returns whether the rows of an array are bytes of variable length, such as encoded images."""
    return array.dtype.kind == "O" and import_h5py().check_vlen_dtype(array.dtype) == np.uint8


def is_text(array) -> bool:
    """Returns whether the values of an array are text."""
    return array.dtype.kind in "OS" and import_h5py().check_string_dtype(array.dtype) is not None


def array_feature(name: str, array, where: str, flag: bool = False) -> Feature:
    """Returns the feature of a column that is stored as an array, (rows, *shape). A flag is read as bool."""
    if not array.shape:
        raise UserError("this is a single value, not an array with a row for each step", where=where,
                        hint="leave it out of the file, or write it for each step")
    if 0 in array.shape[1:]:
        raise UserError(f"the shape {array.shape} has no components", where=where, hint="remove the array")
    is_bytes = array.dtype == np.uint8 or array.dtype.kind == "S" or is_variable_bytes(array)
    if is_bytes and len(array.shape) == 1 + (array.dtype == np.uint8):
        with hdf5_errors(where):
            if encoded := encoded_image_feature(array[:16], where):
                return encoded
    if is_text(array):
        return Feature("string", tuple(array.shape[1:]), "string")
    if array.dtype.kind not in "biuf":
        raise UserError(f"the array contains {_unsupported_reason(array)}", where=where,
                        hint="save the array again with numbers or text only")
    return stored_feature(name, array.shape[1:], array.dtype, flag)


def _unsupported_reason(array) -> str:
    if import_h5py().check_ref_dtype(array.dtype):
        return "references"
    return {"V": "compound or opaque values", "O": "objects of varying length"}.get(array.dtype.kind,
                                                                                    f"dtype {array.dtype}")


def read_column(file, path: str, first: int, stop: int, where: str) -> np.ndarray:
    """Reads rows of the array at `path` in an open file or group, (stop - first, *shape)."""
    h5py = import_h5py()
    with hdf5_errors(where):
        handle = h5py.h5o.open(file.id, path.encode())
        dtype, space = handle.dtype, handle.get_space()
        shape = space.get_simple_extent_dims()
        if dtype.kind not in "biuf" or not shape or not 0 <= first < stop <= shape[0]:
            return read_rows(h5py.Dataset(handle), first, stop, where)
        out = np.empty((stop - first, *shape[1:]), dtype)
        if len(out) == shape[0]:
            handle.read(h5py.h5s.ALL, h5py.h5s.ALL, out)
        else:
            space.select_hyperslab((first, *[0] * (len(shape) - 1)), out.shape)
            handle.read(h5py.h5s.create_simple(out.shape), space, out)
        return out


def read_rows(array, first: int, stop: int, where: str) -> np.ndarray:
    """Reads rows of an `ArrayInfo` or an h5py.Dataset, (stop - first, *shape). Text is read as str."""
    with hdf5_errors(where):
        if not is_text(array):
            return array[first:stop]
        try:
            return (array.values if isinstance(array, ArrayInfo) else array).asstr("utf-8")[first:stop]
        except UnicodeDecodeError as error:
            if array.dtype.kind == "S" and encoded_image_feature(values := array[first:stop], where):
                return values
            raise damaged(f"the text is not UTF-8 ({error})", where) from None


def read_attributes(node, where: str, without: Iterable[str] = ()) -> dict[str, Any]:
    """Reads the attributes of a file, group or array as JSON values."""
    with hdf5_errors(f"{where}, attributes"):
        return {key: to_json_value(node.attrs[key], f"{where}, attribute {key}") for key in node.attrs
                if key not in (FILLED_ATTRIBUTE, COLUMNS_ATTRIBUTE, *without)}


def to_json_value(value, where: str):
    """Converts the value of an attribute, numbers or text, alone or in arrays, to plain JSON values."""
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufUSO":
        value = value.astype(tensor_dtype(value.dtype)).tolist()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, (list, tuple)):
        return [to_json_value(v, where) for v in value]
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    raise damaged(f"this is neither a number nor text but {type(value).__name__}", where)


def decode_json_attribute(text, where: str):
    """Decodes an attribute that is JSON. Text that is not JSON is returned as it is."""
    if not isinstance(text, str):
        raise UserError(f"this is not JSON text: {text!r}", where=where, hint="correct the attribute")
    try:
        return json.loads(text)
    except ValueError:
        return text


def restore_column_order(schema: Mapping[str, Feature], file) -> dict[str, Feature]:
    """Restores the order and kinds with which the columns were written, if the file has them.

    h5py sorts arrays by name, and an array of bytes may be text.
    """
    stored = to_json_value(file.attrs.get(COLUMNS_ATTRIBUTE, "{}"), COLUMNS_ATTRIBUTE)
    kinds = decode_json_attribute(stored, COLUMNS_ATTRIBUTE)
    kinds = {n: k for n, k in kinds.items() if n in schema} if isinstance(kinds, dict) else {}
    words = {n: replace(schema[n], kind="text") for n, k in kinds.items()
             if k == "text" and schema[n].dtype == "uint8" and schema[n].kind == "vector"}
    return {n: words.get(n, schema[n]) for n in dict.fromkeys([*kinds, *schema])}


# -- writing --------------------------------------------------------------------------------------------------------

_BYTES_PER_ARRAY = 1024  # size of the description of an array


def check_space(path: Path, data: Dataset, n_arrays: int, observations: int = 1) -> None:
    """Refuses data that the disk cannot hold: HDF5 ends the process with a signal when a disk is full.

    Args:
        n_arrays: Number of arrays of the file, or of all files.
        observations: Number of copies of each observation in the file.
    """
    sizes = [f.size * np.dtype(f.dtype).itemsize * (observations if role(n) == "observation" else 1)
             for n, f in data.features().items() if f.kind != "string"]
    need = data.steps * sum(sizes) + n_arrays * _BYTES_PER_ARRAY
    free = shutil.disk_usage(next(p for p in path.absolute().parents if p.exists())).free
    if need > free:
        raise UserError(f"it may need {need / 1e6:,.1f} MB, and the disk has {free / 1e6:,.1f} MB free", where=path,
                        hint="free some space, or choose another disk")


def store_column_order(file, features: Mapping[str, Feature], capability: sidecar.FormatCapability) -> None:
    """Stores the order and kinds of the columns in an attribute of the file."""
    file.attrs[COLUMNS_ATTRIBUTE] = json.dumps({p.name: features[n].kind for n, p in capability.columns.items()})


def write_column(group, key: str, values, filled: str = "") -> None:
    """Writes a column of one episode. Frames are stored in chunks of one, so that each can be read alone.

    Args:
        values: The rows, (rows, *shape).
        filled: Value of FILLED_ATTRIBUTE, for an array that the data do not have.
    """
    h5py, values = import_h5py(), np.asarray(values)
    if values.dtype.kind in "UO":
        array = group.create_dataset(key, data=values.astype(object), dtype=h5py.string_dtype())
    else:
        chunks = (1, *values.shape[1:]) if values.dtype == np.uint8 and values.ndim == 4 else None
        array = group.create_dataset(key, data=values, chunks=chunks)
    if filled:
        array.attrs[FILLED_ATTRIBUTE] = filled


def write_metadata(node, episode: Episode, capability: sidecar.FormatCapability, data: Dataset | None = None) -> None:
    """Writes the metadata of an episode as attributes.

    Args:
        data: The data set. Its fps and robot type are written as well. None to leave them out.
    """
    values = {k: episode.metadata[k] for k in capability.metadata_keys if k in episode.metadata}
    if data is not None:
        robot_type = data.metadata.get("robot_type") if capability.robot_type else None
        values |= {k: v for k, v in (("fps", data.fps), ("robot_type", robot_type)) if v is not None}
    for key, value in values.items():
        node.attrs[key] = value


def plan(
    data: Dataset, keys: KeyMap, attributes: Collection[str],
    key_of: Callable[[str, Feature], str | None] | None = None,
    last: Callable[[str], bool] = lambda key: False, flags: Iterable[str] = (),
) -> tuple[sidecar.FormatCapability, dict[str, str]]:
    """Plans what a format stores in arrays and attributes of HDF5, and the key of each stored column.

    Args:
        attributes: Metadata keys that cannot be stored, because these attributes mean something else in the format.
        key_of: Returns the key of a column, or None if the format cannot store it. By default, `keys.key`.
        last: Whether an array has room for a row after the last action.
        flags: Columns that are read as bool.
    """
    array_keys, out, taken = {}, {}, set()
    for name, f in data.features().items():
        key = None if name in keys.reserved else (key_of or keys.key)(name, f)
        if key is None or key in array_keys.values() or not is_storable(data, name, f):
            continue
        read_feature = f if f.kind == "string" else stored_feature("", f.shape, f.dtype)
        read_name = keys.column(key, read_feature)
        if read_name in taken:
            continue
        read_feature = f if f.kind == "string" else stored_feature(read_name, f.shape, f.dtype, read_name in flags)
        array_keys[name] = key
        out[name] = sidecar.ColumnEncoding(read_name, read_feature.dtype, read_feature.shape, last(key))
        taken.add(read_name)
    robot = data.metadata.get("robot_type")
    return sidecar.FormatCapability(out, fps=True, robot_type=robot is None or is_storable_name(robot),
                                    metadata_keys=_storable_metadata(data, attributes)), array_keys


def is_storable(data: Dataset, name: str, f: Feature) -> bool:
    """Returns whether HDF5 can store the values of a column. Text must not contain NUL or lone surrogates."""
    if not is_storable_name(name):
        return False
    if f.kind != "string":
        return np.dtype(f.dtype).kind in "biuf"
    return all(_text(str(v)) for e in data for v in set(np.ravel(e.steps[name]).tolist()))


def _storable_metadata(data: Dataset, reserved: Collection[str]) -> frozenset[str]:
    """Returns the keys of the episodes' metadata that attributes can store exactly."""
    items = [item for e in data for item in e.metadata.items()]
    inexact = {key for key, value in items if not _simple(value)}
    return frozenset(key for key, _ in items
                     if key not in reserved and key not in inexact and is_storable_name(key))


def _simple(value) -> bool:
    if type(value) is str:
        return _text(value)
    return type(value) in (bool, float) or type(value) is int and -2**63 <= value < 2**63


def is_storable_name(text) -> bool:
    """Returns whether an array or attribute can have this name. "." is the group, and "/" separates groups."""
    reserved = ("", ".", "..", FILLED_ATTRIBUTE, COLUMNS_ATTRIBUTE)
    return text not in reserved and "/" not in text and _text(text)


def is_json(value) -> bool:
    """Returns whether a value stays the same when it is stored as JSON."""
    try:
        return json.loads(json.dumps(value)) == value
    except (TypeError, ValueError):
        return False


def _text(text: str) -> bool:
    try:
        return "\0" not in text and bool(text.encode() or True)
    except UnicodeEncodeError:
        return False

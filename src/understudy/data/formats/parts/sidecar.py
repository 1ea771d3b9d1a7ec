"""Sidecar files, which keep what a format cannot store next to the data.

In a folder the sidecar file is understudy.npz. Next to FILE it is FILE.understudy.npz. Other software ignores it. A
format says what it stores (`FormatCapability`), as it would be read again. The losses of a conversion and the content
of the sidecar file follow from that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from ....core import Feature, UserError
from ....files import check_absent, whole_file, whole_folder
from ... import cache
from ...episode import ColumnSource, Dataset, episode_starts
from ...sources import WrapperSource
from .file_kinds import SIDECAR_NAME
from .npz_arrays import NpzArrays, column_array, stored_dtype, whole_array, write_npz

_INEXACT = "is compressed, and not exactly the same afterwards"  # the only loss that no sidecar file repairs


@dataclass(frozen=True)
class ColumnEncoding:
    """How a format stores one column, and so what is read again without the sidecar file.

    Args:
        shape: Shape of one step when it is read again.
        has_last_row: Whether the format stores the row after the last action.
        is_exact: Whether the values are read bit-identically, in this dtype. If not, they are lost.
        repeats_last_row: Whether the format needs a row after the last action, so that the last row is written twice if
            there is none.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    has_last_row: bool = False
    is_exact: bool = True
    repeats_last_row: bool = False


@dataclass(frozen=True)
class FormatCapability:
    """What a format can store of a data set without a sidecar file.

    Args:
        columns: How each column is stored. Columns that are missing here are not stored.
        component_names: Whether names of components, kinds and numbers of classes are stored.
        fps: Whether the steps per second are stored.
        metadata_keys: Keys of the metadata of episodes that are stored.
        read_columns: All columns in the order in which they are read again, if it is not the order of the data or if
            there are more of them.
    """

    columns: Mapping[str, ColumnEncoding]
    component_names: bool = False
    units: bool = False
    fps: bool = False
    robot_type: bool = False
    metadata_keys: frozenset[str] = frozenset()
    read_columns: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ConversionLoss:
    """Something that a format cannot store of a data set without a sidecar file.

    Args:
        subject: A column, "fps", "robot_type" or "metadata.KEY".
        in_sidecar: Whether it is kept in the sidecar file, so that understudy reads it again.
    """

    subject: str
    reason: str
    in_sidecar: bool = True

    def __str__(self) -> str:
        return f"{self.subject}: {self.reason}" + ("" if self.in_sidecar else " (lost)")


def conversion_losses(data: Dataset, capability: FormatCapability) -> list[ConversionLoss]:
    """Lists what a format cannot store without a sidecar file, in the order of the columns."""
    out, declared, lengths = [], data[0].features() if len(data) else {}, data.lengths
    for name, f in data.features().items():
        place = capability.columns.get(name)
        if place is None:
            out.append(ConversionLoss(name, "the format has no place for this column"))
            continue
        rows, classes, named = data.rows(name), declared[name].num_classes, capability.component_names
        losses = {
            f"is called {place.name} there": place.name != name,
            f"{f.dtype} {f.shape} is stored as {place.dtype} {place.shape}":
                (place.dtype, place.shape) != (f.dtype, f.shape),
            _INEXACT: not place.is_exact,
            "the row after the last action": not place.has_last_row and (rows > lengths).any(),
            "that no row follows the last action: its last row is written twice":
                place.repeats_last_row and (rows == lengths).any(),
            "the names of its components": f.names and not named,
            f"how many choices there are, {', '.join(map(str, classes or ()))}": classes and not named,
            f"that it is of kind {f.kind}": f.kind != _kind(f) and not named,
            f"its unit, {f.unit}": f.unit and not capability.units}
        out += [ConversionLoss(name, reason, reason != _INEXACT) for reason, is_lost in losses.items() if is_lost]
    if data.fps is not None and not capability.fps:
        out.append(ConversionLoss("fps", f"{data.fps:g} steps a second"))
    if data.metadata.get("robot_type") and not capability.robot_type:
        out.append(ConversionLoss("robot_type", str(data.metadata["robot_type"])))
    keys = dict.fromkeys(key for e in data for key in e.metadata if key not in capability.metadata_keys)
    return out + [ConversionLoss(f"metadata.{key}", "metadata of the episodes") for key in keys]


def _kind(f: Feature) -> str:
    """Returns the kind (vector, image, ...) that an array of this dtype and shape is read as."""
    return "string" if f.dtype == "string" else Feature.from_array(np.empty((0, *f.shape), f.dtype)).kind


def plain_metadata(data: Dataset) -> dict[str, list]:
    """Returns the metadata that are of one plain type in all episodes: flag, float, text, or 64-bit integer."""
    out = {}
    for key, value in data[0].metadata.items():
        kind = type(value)
        values: list[Any] = [e.metadata.get(key) for e in data]
        if kind in (bool, int, float, str) and {type(v) for v in values} == {kind} and (
                kind is not int or all(-2**63 <= v < 2**63 for v in values)):
            out[key] = values
    return out


def sidecar_path(path: Path) -> Path:
    """Returns the path of the sidecar file of a data set."""
    return path / SIDECAR_NAME if path.is_dir() else path.with_name(f"{path.name}.{SIDECAR_NAME}")


def write_sidecar(path: Path, data: Dataset, capability: FormatCapability) -> None:
    """Writes the sidecar file of a data set, if it has anything to store."""
    features, lengths = data.features(), data.lengths
    if not conversion_losses(data, capability) and capability.read_columns in (None, tuple(features)):
        return
    document = {
        "version": 1, "fps": data.fps, "robot_type": data.metadata.get("robot_type"),
        "columns": {name: asdict(f) for name, f in features.items()},
        "places": {name: place.name for name, place in capability.columns.items()},
        "metadata": [dict(e.metadata) for e in data]}
    text = np.frombuffer(json.dumps(document, default=to_json_value).encode(), np.uint8)
    arrays = [whole_array("document", text), whole_array("lengths", lengths)]
    for name, f in features.items():
        place, rows = capability.columns.get(name), data.rows(name)
        longer = rows > lengths
        if place is None:
            arrays += [whole_array(f"rows/{name}", rows), column_array(data, name, f"column/{name}", rows)]
        elif place.repeats_last_row and not longer.all():
            arrays.append(whole_array(f"rows/{name}", rows))
        elif longer.any() and not place.has_last_row:
            last = partial(_last_rows, data, name)
            arrays += [whole_array(f"rows/{name}", rows),
                       (f"last/{name}", (int(longer.sum()), *f.shape), stored_dtype(f, last), last)]
    write_npz(sidecar_path(path), arrays)


@contextmanager
def new_folder(path: str | Path, data: Dataset, holds: FormatCapability) -> Iterator[Path]:
    """Writes a new folder with its sidecar file. A context manager.

    It gives a temporary folder to write into, which is renamed when all is written.
    """
    with cache.disk_errors(Path(path)), whole_folder(path) as part:
        yield part
        write_sidecar(part, data, holds)


@contextmanager
def new_file_with_sidecar(path: Path, data: Dataset, capability: FormatCapability) -> Iterator[Path]:
    """Writes a new file with its sidecar file: both or neither. A context manager.

    It gives a temporary file to write to, which is renamed when all is written.
    """
    if sidecar_path(path).exists():
        raise UserError("this file belongs to another data set of the same name",
                        where=sidecar_path(path), hint="choose another place, or move it away first")
    with cache.disk_errors(path), whole_file(path) as part:
        yield part
        check_absent(path)  # the sidecar file of another process would be replaced
        try:
            write_sidecar(path, data, capability)
        except BaseException:
            sidecar_path(path).unlink(missing_ok=True)
            raise


def apply_sidecar(path: Path, data: Dataset) -> Dataset:
    """Adds the contents of the sidecar file to a dataset, if there is one.

    A sidecar file for other numbers of steps is ignored with a warning in `metadata["warnings"]`.
    """
    if not sidecar_path(path).exists():
        return data
    arrays = NpzArrays(sidecar_path(path))
    document = json.loads(arrays.read_array("document").tobytes())
    if document.get("version") != 1:
        raise UserError(f"version {document.get('version')} is not read, only version 1", where=sidecar_path(path),
                        hint="a newer understudy wrote this: update, or move the file away to read the data without it")
    sidecar_lengths, source = arrays.read_array("lengths"), data.source
    if not np.array_equal(sidecar_lengths, source.lengths):
        warning = (f"{sidecar_path(path).name} is about {len(sidecar_lengths)} episodes and "
                   f"{int(sidecar_lengths.sum())} steps, the data have {len(source.lengths)} and "
                   f"{int(source.lengths.sum())}: it is left aside")
        warnings = [*data.metadata.get("warnings", []), warning]
        return Dataset(source, {**data.metadata, "warnings": warnings}, data.indices)
    metadata = {**data.metadata, "fps": document["fps"], "robot_type": document["robot_type"]}
    return Dataset(SidecarSource(source, arrays, document), metadata, data.indices)


def copy_selected(path: Path, kept: np.ndarray, destination: Path) -> None:
    """Writes the sidecar file for a copy that has only some episodes of a data set.

    Args:
        kept: Whether the copy has each episode, (E,).

    Raises:
        UserError: The sidecar file is about another number of episodes, so that it is not known which they are.
    """
    arrays = NpzArrays(sidecar_path(path))
    document, lengths = json.loads(arrays.read_array("document").tobytes()), arrays.read_array("lengths")
    if len(lengths) != len(kept):
        raise UserError(f"it is about {len(lengths)} episodes, and there are {len(kept)}", where=sidecar_path(path),
                        hint="move it away to continue without its contents")
    document["metadata"] = [m for m, keep in zip(document["metadata"], kept, strict=True) if keep]
    text = np.frombuffer(json.dumps(document).encode(), np.uint8)
    out = [whole_array("document", text), whole_array("lengths", lengths[kept])]
    for key, (shape, dtype) in arrays.headers.items():
        what, _, name = key.partition("/")
        if what == "rows":
            out.append(whole_array(key, arrays.read_array(key)[kept]))
        elif name:
            rows = arrays.read_array(f"rows/{name}")
            mask = np.repeat(kept, rows if what == "column" else rows > lengths)
            out.append((key, (int(mask.sum()), *shape[1:]), dtype, partial(_masked, arrays, key, mask)))
    write_npz(sidecar_path(destination), out)


class SidecarSource(WrapperSource):
    """Wraps a source so that it has the contents of its sidecar file, with the original column names and dtypes."""

    def __init__(self, inner: ColumnSource, arrays: NpzArrays, document: Mapping[str, Any]):
        super().__init__(inner, arrays.key)
        self._arrays, self._episode_metadata, self._encodings = arrays, document["metadata"], document["places"]
        self.schema = {name: Feature.from_json(f) for name, f in document["columns"].items()}
        for name in self.schema:
            if f"column/{name}" not in arrays.headers and self._encodings.get(name) not in inner.schema:
                raise UserError(f"there is no column {self._encodings.get(name)}; there are {', '.join(inner.schema)}",
                                where=arrays.path, hint="move this file away to read the data without it")

    def _is_in_sidecar(self, name) -> bool:
        return f"column/{name}" in self._arrays.headers

    @cached_property
    def _rows(self) -> dict[str, np.ndarray]:
        return {name: self._arrays.read_array(f"rows/{name}") if f"rows/{name}" in self._arrays.headers else
                self.inner.rows(self._encodings[name]) for name in self.schema}

    @cached_property
    def _maps(self) -> dict[str, np.ndarray]:
        layout = {k: about for k, about in self._arrays.headers.items() if k.startswith(("column/", "last/"))}

        def fill(out):
            for key, array in out.items():
                for row, values in self._arrays.iter_rows(key):
                    array[row: row + len(values)] = values
        return cache.columns(cache.json_digest(self._arrays.key, "side"), layout, fill, str(self._arrays.path))

    @cached_property
    def _first(self) -> dict[str, np.ndarray]:
        return {name: episode_starts(self._rows[name]) for name in self.schema}

    def rows(self, name):
        return self._rows[name]

    def episode_metadata(self, episode):
        return self._episode_metadata[episode]

    def packed_column(self, name):
        if self._is_in_sidecar(name):
            return self._maps[f"column/{name}"]
        place, f = self._encodings[name], self.schema[name]
        inner = self.inner.schema[place]
        same = (inner.dtype, inner.shape) == (f.dtype, f.shape)
        return self.inner.packed_column(place) if same and f"rows/{name}" not in self._arrays.headers else None

    def column(self, name, episode):
        if self._is_in_sidecar(name):
            first = self._first[name][episode]
            return self._maps[f"column/{name}"][first: first + self._rows[name][episode]]
        f, column = self.schema[name], np.asarray(self.inner.column(self._encodings[name], episode))
        column = column.reshape(len(column), *f.shape)
        column = column if f.kind == "string" else column.astype(f.dtype, copy=False)
        if self._rows[name][episode] <= len(column):
            return column[: self._rows[name][episode]]
        last_row = int((self._rows[name][:episode] > self.lengths[:episode]).sum())
        return np.concatenate([column, self._maps[f"last/{name}"][last_row: last_row + 1]])

    def frames(self, name, episode):
        if self._is_in_sidecar(name) or f"rows/{name}" in self._arrays.headers:
            return enumerate(self.column(name, episode))
        return self.inner.frames(self._encodings[name], episode)


def _masked(arrays: NpzArrays, key: str, mask: np.ndarray) -> Iterator[np.ndarray]:
    return (values[mask[row: row + len(values)]] for row, values in arrays.iter_rows(key))


def _last_rows(data: Dataset, name: str) -> Iterable[np.ndarray]:
    return (column[len(e):] for e in data for column in [np.asarray(e.steps[name])] if len(column) > len(e))


def to_json_value(value):
    """Converts NumPy numbers and arrays to JSON, and anything else to text: the `default` of `json.dumps`."""
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else str(value)

"""What a format has no place for: said before it is written, and kept in a file beside it.

In a folder that file is understudy.npz, beside FILE it is FILE.understudy.npz; other software does not look at it. A
format says what it holds (`Holds`), as it would be read again; everything else follows from that here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from ...core import Feature, UserError
from ...files import whole_file
from .. import cache
from ..episode import Dataset
from .arrays import Arrays
from .arrays import write as write_arrays
from .base import Episodes, Source, rows_of, starts

NAME = "understudy.npz"


@dataclass(frozen=True)
class Place:
    """How a format stores one column: what it is called and what it is when it is read again without the side file.
    last: there is room for the row after the last action. exact: the values are the same, bit by bit (a wider dtype
    is), or else they are lost. repeats: where there is no row after the last action, the format needs one all the
    same, and the last row is written once more."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    last: bool = False
    exact: bool = True
    repeats: bool = False

    @staticmethod
    def like(name: str, feature: Feature, last: bool = False) -> Place:
        return Place(name, feature.dtype, feature.shape, last)


@dataclass(frozen=True)
class Holds:
    """What a format stores by itself. columns: by their names here; those that are missing have no place in it.
    names: of components, and how many choices there are. meta: keys of the facts of episodes. reads: all columns, in
    the order in which they are read again, where that is not the order of the data or has more of them."""

    columns: Mapping[str, Place]
    names: bool = False
    units: bool = False
    fps: bool = False
    robot: bool = False
    meta: frozenset[str] = frozenset()
    reads: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Loss:
    """subject: a column, "fps", "robot_type" or "meta.KEY". kept: in the side file, so that we read it again."""

    subject: str
    why: str
    kept: bool = True

    def __str__(self) -> str:
        return f"{self.subject}: {self.why}" + ("" if self.kept else " (lost)")


def losses(data: Dataset, holds: Holds) -> list[Loss]:
    """What of these data the format cannot hold by itself, in the order of the columns."""
    out, declared = [], data[0].features() if len(data) else {}
    for name, f in data.features().items():
        place = holds.columns.get(name)
        if place is None:
            out.append(Loss(name, "the format has no place for this column"))
            continue
        if place.name != name:
            out.append(Loss(name, f"is called {place.name} there"))
        if (place.dtype, place.shape) != (f.dtype, f.shape):
            out.append(Loss(name, f"{f.dtype} {f.shape} is stored as {place.dtype} {place.shape}"))
        if not place.exact:
            out.append(Loss(name, "is compressed, and not exactly the same afterwards", kept=False))
        if not place.last and (rows_of(data, name) > rows_of(data)).any():
            out.append(Loss(name, "the row after the last action"))
        if place.repeats and (rows_of(data, name) == rows_of(data)).any():
            out.append(Loss(name, "that no row follows the last action: its last row is written twice"))
        if f.names and not holds.names:
            out.append(Loss(name, "the names of its components"))
        if declared[name].choices and not holds.names:
            out.append(Loss(name, f"how many choices there are, {', '.join(map(str, f.choices))}"))
        if f.kind != _kind(f) and not holds.names:
            out.append(Loss(name, f"that it is of kind {f.kind}"))
        if f.unit and not holds.units:
            out.append(Loss(name, f"its unit, {f.unit}"))
    if data.fps is not None and not holds.fps:
        out.append(Loss("fps", f"{data.fps:g} steps a second"))
    if data.facts.get("robot_type") and not holds.robot:
        out.append(Loss("robot_type", str(data.facts["robot_type"])))
    keys = dict.fromkeys(key for e in data for key in e.meta)
    return out + [Loss(f"meta.{key}", "a fact of the episodes") for key in keys if key not in holds.meta]


def _kind(f: Feature) -> str:
    """What an array of that dtype and shape is taken for."""
    return "string" if f.dtype == "string" else Feature.of(np.empty((0, *f.shape), f.dtype)).kind


def beside(path: Path) -> Path:
    return path / NAME if path.is_dir() else path.with_name(f"{path.name}.{NAME}")


def write(path: Path, data: Dataset, holds: Holds) -> None:
    """The side file of the data set that lies at `path`, if there is anything for it."""
    features, lengths = data.features(), rows_of(data)
    if not losses(data, holds) and (holds.reads is None or holds.reads == tuple(features)):
        return
    document = {
        "version": 1, "fps": data.fps, "robot_type": data.facts.get("robot_type"),
        "columns": {name: asdict(f) for name, f in features.items()},
        "places": {name: place.name for name, place in holds.columns.items()},
        "meta": [dict(e.meta) for e in data]}
    text = np.frombuffer(json.dumps(document, default=_plain).encode(), np.uint8)
    arrays = [("document", text.shape, text.dtype, lambda: [text]),
              ("lengths", lengths.shape, lengths.dtype, lambda: [lengths])]
    for name, f in features.items():
        place, rows = holds.columns.get(name), rows_of(data, name)
        longer = rows > lengths
        if place is None:
            arrays += [_array(f"rows/{name}", rows), _pieces(f"column/{name}", f, rows, partial(_column, data, name))]
        elif place.repeats and not longer.all():
            arrays.append(_array(f"rows/{name}", rows))
        elif longer.any() and not place.last:
            ones = longer.astype(np.int64)
            arrays += [_array(f"rows/{name}", rows), _pieces(f"last/{name}", f, ones, partial(_lasts, data, name))]
    write_arrays(beside(path), arrays)


@contextmanager
def with_file(path: Path, data: Dataset, holds: Holds) -> Iterator[Path]:
    """A new file at `path` and what belongs beside it: both, or neither. Yields where to write the file meanwhile."""
    if beside(path).exists():
        raise UserError("expected nothing here, found what was kept beside another file of that name",
                        where=beside(path), do="choose another place, or move it away first")
    with whole_file(path) as part:
        yield part
        try:
            write(path, data, holds)
        except BaseException:
            beside(path).unlink(missing_ok=True)
            raise


def opened(path: Path, data: Dataset) -> Dataset:
    """`data` as it was read from `path`, with what lies in its side file, if it has one."""
    if not beside(path).exists():
        return data
    arrays = Arrays(beside(path))
    document = json.loads(arrays.small("document").tobytes())
    if document.get("version") != 1:
        raise UserError(f"expected version 1, found {document.get('version')}", where=beside(path),
                        do="a newer understudy wrote this: update, or move the file away to read the data without it")
    source = data._episodes.source
    said = arrays.small("lengths")
    if not np.array_equal(said, source.lengths):
        warning = (f"{beside(path).name} is about {len(said)} episodes and {int(said.sum())} steps, the data have "
                   f"{len(source.lengths)} and {int(source.lengths.sum())}: it is left aside")
        return Dataset(data._episodes, {**data.facts, "warnings": [*data.facts.get("warnings", []), warning]})
    facts = {**data.facts, "fps": document["fps"], "robot_type": document["robot_type"]}
    return Dataset(Episodes(Sided(source, arrays, document), data._episodes.numbers), facts)


def pick(path: Path, numbers: Sequence[int], to: Path) -> None:
    """Beside `to`, what lies beside `path` of these of its episodes."""
    arrays = Arrays(beside(path))
    document, lengths = json.loads(arrays.small("document").tobytes()), arrays.small("lengths")
    kept = np.isin(np.arange(len(lengths)), numbers)
    document["meta"] = [m for m, keep in zip(document["meta"], kept, strict=True) if keep]
    text = np.frombuffer(json.dumps(document).encode(), np.uint8)
    out = [_array("document", text), _array("lengths", lengths[kept])]
    for key, (shape, dtype) in arrays.headers.items():
        what, _, name = key.partition("/")
        if what == "rows":
            out.append(_array(key, arrays.small(key)[kept]))
        elif name:
            rows = arrays.small(f"rows/{name}")
            mask = np.repeat(kept, rows if what == "column" else rows > lengths)
            out.append((key, (int(mask.sum()), *shape[1:]), dtype, partial(_masked, arrays, key, mask)))
    write_arrays(beside(to), out)


class Sided(Source):
    """Another source, with what the side file adds; columns have the names and dtypes that they had."""

    def __init__(self, inner: Source, arrays: Arrays, document: Mapping[str, Any]):
        self.inner, self._arrays, self._meta = inner, arrays, document["meta"]
        self._places = document["places"]
        self.lengths = inner.lengths
        self.key = cache.digest(inner.key, arrays.key)
        self.schema = {name: Feature(**{k: tuple(v) if isinstance(v, list) else v for k, v in f.items()})
                       for name, f in document["columns"].items()}
        for name in self.schema:
            if f"column/{name}" not in arrays.headers and self._places.get(name) not in inner.schema:
                raise UserError(f"expected a column {self._places.get(name)}, found {', '.join(inner.schema)}",
                                where=arrays.path, do="move this file away to read the data without it")

    def _aside(self, name) -> bool:
        return f"column/{name}" in self._arrays.headers

    @cached_property
    def _rows(self) -> dict[str, np.ndarray]:
        return {name: self._arrays.small(f"rows/{name}") if f"rows/{name}" in self._arrays.headers else
                self.inner.rows(self._places[name]) for name in self.schema}

    @cached_property
    def _maps(self) -> dict[str, np.ndarray]:
        keys = [k for k in self._arrays.headers if k.startswith(("column/", "last/"))]
        size = sum(int(np.prod(s, dtype=np.int64)) * np.dtype(t).itemsize
                   for s, t in map(self._arrays.headers.__getitem__, keys))
        key = cache.digest(self._arrays.key, "side")
        return cache.arrays(key, size, partial(self._build, keys), str(self._arrays.path))

    def _build(self, keys, part):
        for key in keys:
            shape, dtype = self._arrays.headers[key]
            out = cache.create(part, key, shape, np.dtype(dtype))
            for row, values in self._arrays.stream(key):
                out[row: row + len(values)] = values
            out.flush()

    @cached_property
    def _first(self) -> dict[str, np.ndarray]:
        return {name: starts(self._rows[name]) for name in self.schema}

    def rows(self, name):
        return self._rows[name]

    def meta(self, episode):
        return self._meta[episode]

    def whole(self, name):
        if self._aside(name):
            return self._maps[f"column/{name}"]
        place, f = self._places[name], self.schema[name]
        inner = self.inner.schema[place]
        same = (inner.dtype, inner.shape) == (f.dtype, f.shape)
        return self.inner.whole(place) if same and f"rows/{name}" not in self._arrays.headers else None

    def column(self, name, episode):
        if self._aside(name):
            first = self._first[name][episode]
            return self._maps[f"column/{name}"][first: first + self._rows[name][episode]]
        f, column = self.schema[name], np.asarray(self.inner.column(self._places[name], episode))
        column = column.reshape(len(column), *f.shape)
        column = column if f.kind == "string" else column.astype(f.dtype, copy=False)
        if self._rows[name][episode] <= len(column):
            return column[: self._rows[name][episode]]
        at = int((self._rows[name][:episode] > self.lengths[:episode]).sum())
        return np.concatenate([column, self._maps[f"last/{name}"][at: at + 1]])

    def frames(self, name, episode):
        if self._aside(name) or f"rows/{name}" in self._arrays.headers:
            return super().frames(name, episode)
        return self.inner.frames(self._places[name], episode)


def _array(name, values):
    return name, values.shape, values.dtype, lambda: [values]


def _pieces(name, feature: Feature, rows: np.ndarray, pieces):
    dtype = feature.dtype
    if feature.kind == "string":  # the room that the longest takes
        dtype = f"U{max((len(str(v)) for piece in pieces() for v in np.ravel(piece)), default=1) or 1}"
    return name, (int(rows.sum()), *feature.shape), np.dtype(dtype), pieces


def _masked(arrays: Arrays, key: str, mask: np.ndarray) -> Iterator[np.ndarray]:
    return (values[mask[row: row + len(values)]] for row, values in arrays.stream(key))


def _column(data: Dataset, name: str) -> Iterator[np.ndarray]:
    return (np.asarray(e.steps[name]) for e in data)


def _lasts(data: Dataset, name: str) -> Iterable[np.ndarray]:
    return (column[len(e):] for e in data for column in [np.asarray(e.steps[name])] if len(column) > len(e))


def _plain(value):
    """NumPy's numbers and arrays as JSON's."""
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else str(value)

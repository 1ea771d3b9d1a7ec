"""Minari data sets: HDF5, Arrow and Parquet storage read, HDF5 written.

Layout: Farama-Foundation/Minari minari/dataset/_storages. An episode of T actions has T+1 observations and infos; in
Arrow and Parquet all columns have T+1 rows, of which the last of actions, rewards, terminations and truncations is
padding. Dictionaries and tuples of a space become columns of their own: observations/nested/goal is
observation.nested.goal. Images may be JPEG: that is decided by how they are stored, not by what `jpeg_encoding` says.
"""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...core import Feature, UserError
from ...files import read_json, whole_folder, write_json
from .. import cache, video
from ..episode import Dataset
from . import arrow, hdf5, sidecar
from .base import SourceEpisodes, row_counts
from .chunked_source import ChunkedSource, sort_numbered, stored_feature
from .sidecar import FormatCapability

_NAMES = {"actions": "action", "rewards": "next.reward", "terminations": "next.terminated",
          "truncations": "next.truncated"}
_KEYS = {name: key for key, name in _NAMES.items()}
_FLAGS = ("next.terminated", "next.truncated")
_OUTCOMES = ("rewards", "terminations", "truncations")
_COUNTED = {"total_episodes", "total_steps", "data_format", "jpeg_encoding", "observation_space", "action_space",
            "dataset_size", "minari_version", "dataset_id"}  # said anew of what is written
_DAMAGE = "the file is cut short or damaged: take it from a copy"
_VERSION = "0.5.4"  # of Minari, whose layout is written


def open_minari(path: Path) -> Dataset:
    if path.is_file():
        source = Hdf5Source(path.parent, {}, path)
    else:
        data = path / "data" if (path / "data").is_dir() else path
        about = read_json(data / "metadata.json") if (data / "metadata.json").exists() else {}
        if not isinstance(about, dict):
            raise UserError(f"expected an object, found {str(about)[:40]}", where=data / "metadata.json", hint=_DAMAGE)
        kind = about.get("data_format", "hdf5")
        if kind == "hdf5":
            source = Hdf5Source(data, about, data / "main_data.hdf5")
        elif kind in ("arrow", "parquet"):
            source = TablesSource(data, about, kind)
        else:
            raise UserError(f"expected data_format hdf5, arrow or parquet, found {kind!r}",
                            where=data / "metadata.json", hint="update understudy, or correct the file")
    return Dataset(SourceEpisodes(source), source.metadata)


class _MinariSource(ChunkedSource):
    def __init__(self, path: Path, about: Mapping[str, Any]):
        self.path, self.dataset_metadata, self.warnings = path, about, []
        self.spaces = {key: self._space(f"{key[:-1]}_space") for key in ("observations", "actions")}

    def _space(self, key) -> dict | None:
        text = self.dataset_metadata.get(key)
        if text is None:
            return None
        space = (
            hdf5.decode_json_attribute(text, f"{self.path / 'metadata.json'}, {key}") if isinstance(text, str) else text
        )
        if not isinstance(space, dict) or "type" not in space:
            raise UserError(f"expected a space, found {str(text)[:60]!r}", hint=_DAMAGE,
                            where=f"{self.path / 'metadata.json'}, {key}")
        return space

    def leaf_space(self, key: str) -> dict | None:
        """The space of "observations/nested/goal"."""
        top, *within = key.split("/")
        space = self.spaces.get(top)
        for name in within:
            parts = space.get("subspaces") if isinstance(space, dict) else None
            if isinstance(parts, list):
                number = name.removeprefix("_index_")
                parts = {str(i): p for i, p in enumerate(parts)}
                name = number
            space = parts.get(name) if isinstance(parts, dict) else None
        return space if isinstance(space, dict) else None

    def leaf_shape(self, key: str) -> tuple[int, ...] | None:
        shape = (self.leaf_space(key) or {}).get("shape")
        whole = isinstance(shape, list) and all(isinstance(n, int) and n > 0 for n in shape)
        return tuple(shape) if whole else None

    def _set_schema(self, lengths, found: list[dict[str, tuple[Feature, int]]], where):
        """The schema, of (feature, rows) by key in each episode. Infos that are not alike in all are left out."""
        self.lengths = np.array(lengths, np.int64)
        self.schema, self.keys, self.row_counts = {}, {}, {}
        for key in dict.fromkeys(k for arrays in found for k in arrays):
            without = [e for e, arrays in enumerate(found) if key not in arrays]
            have = [arrays[key] for arrays in found if key in arrays]
            odd = [e for e, arrays in enumerate(found) if key in arrays and (arrays[key][0].dtype, arrays[key][0].shape)
                   != (have[0][0].dtype, have[0][0].shape)]
            rows = np.array([n for _, n in have], np.int64)
            wrong = [] if without else np.flatnonzero((rows != self.lengths) & (rows != self.lengths + 1)).tolist()
            extra = key.startswith("infos/")
            if extra and (without or odd or wrong):
                e = (without or odd or wrong)[0]
                self.warnings.append(f"{key}: not the same in every episode ({where(e)} differs), left out")
                continue
            if without:
                raise UserError(
                    f"expected {key} as in other episodes, found none", where=where(without[0]), hint=_DAMAGE
                )
            if odd:
                f, other = have[0][0], found[odd[0]][key][0]
                raise UserError(f"expected {f.dtype} {f.shape} as in the first episode, found {other.dtype} "
                                f"{other.shape}", where=f"{where(odd[0])}, {key}", hint=_DAMAGE)
            if not extra and not key.startswith("observations"):
                wrong = np.flatnonzero(rows != self.lengths).tolist()
            if wrong:
                raise UserError(f"expected {self.lengths[wrong[0]]} rows, one a step, found {rows[wrong[0]]}",
                                where=f"{where(wrong[0])}, {key}", hint=_DAMAGE)
            f = have[0][0]
            name = _name(key, f)
            if name in self.schema:
                raise UserError(f"expected one array for {name}, found {self.keys[name]} and {key}", where=self.path,
                                hint="remove one of them")
            self.keys[name], self.row_counts[name] = key, rows
            self.schema[name] = replace(f, num_classes=self._num_classes(key, f)) if f.kind == "discrete" else f
        for what, number in (("total_episodes", len(self.lengths)), ("total_steps", int(self.lengths.sum()))):
            if what in self.dataset_metadata and self.dataset_metadata[what] != number:
                self.warnings.append(f"metadata, {what}: {self.dataset_metadata[what]}, but there are {number}")
        said = {k: v for k, v in self.dataset_metadata.items() if k not in _COUNTED | {"fps", "robot_type"}}
        said = {} if hdf5.FILLED_ATTRIBUTE in said else said
        self._declared_metadata = {"minari": said} if said else {}
        rate, robot = self.dataset_metadata.get("fps"), self.dataset_metadata.get("robot_type")
        number = isinstance(rate, (int, float)) and not isinstance(rate, bool) and 0 < rate < float("inf")
        self.metadata = {
            "format": "minari",
            "version": str(self.dataset_metadata.get("minari_version", "")),
            "path": str(self.path),
            "fps": float(rate) if number else None,
            "robot_type": robot if isinstance(robot, str) else None,
            "warnings": self.warnings,
        }

    def _num_classes(self, key, f) -> tuple[int, ...] | None:
        space = self.leaf_space(key) or {}
        if space.get("type") == "Discrete" and space.get("start", 0) == 0 and isinstance(space.get("n"), int):
            return (space["n"],)
        nvec, start = space.get("nvec"), space.get("start")
        if space.get("type") == "MultiDiscrete" and isinstance(nvec, list) and not np.any(start or 0) \
                and all(isinstance(n, int) for n in nvec) and f.shape == (len(nvec),):
            return tuple(nvec)
        return None

    def decode_images(self, values, key, first, where) -> np.ndarray:
        """Encoded images as (rows, H, W, C): grey ones where the space has no colors."""
        shape = self.leaf_shape(key)
        grey = shape is not None and len(shape) == 2
        out = [video.decode_image(bytes(v).rstrip(b"\0"), 1 if grey else 3, f"{where}, row {row}")
               for row, v in enumerate(values, first)]
        odd = next((i for i, image in enumerate(out) if image.shape != out[0].shape), None)
        if odd is not None:
            raise UserError(f"expected images of {out[0].shape}, found {out[odd].shape}",
                            where=f"{where}, row {first + odd}", hint=_DAMAGE)
        return np.stack(out)

    def image_feature(self, key: str, f: Feature) -> Feature:
        """Grey pictures (H, W) as images of one channel."""
        grey = f.dtype == "uint8" and len(f.shape) == 2 and key.startswith("observations") and min(f.shape) > 7
        return Feature("uint8", (*f.shape, 1), "image") if grey else f

    def _grayscale(self, name, values) -> np.ndarray:
        f = self.schema[name]
        return values[..., None] if f.kind == "image" and f.shape[2] == 1 and values.ndim == 3 else values

    @abstractmethod
    def stored_metadata(self, episode) -> Mapping[str, Any]:
        """Facts of the episode, as they are stored."""

    def episode_metadata(self, episode):
        own = {k: v for k, v in self.stored_metadata(episode).items() if k != "total_steps"}
        if own.get("id") == self.numbers[episode] == episode:
            own.pop("id")
        options = {k: own.pop(k) for k in list(own) if k.startswith("options/")}
        for key, value in options.items():
            *groups, last = key.split("/")
            within = own
            for group in groups:
                within = within.setdefault(group, {})
            within[last] = value
        return {**self._declared_metadata, **own}


class Hdf5Source(_MinariSource):
    def __init__(self, folder: Path, about: Mapping[str, Any], file: Path):
        self.file, self._sizes = file, {}  # of encoded images: that of the first
        if not file.is_file():
            raise UserError("expected a file, found none", where=file, hint="take it from a copy")
        with hdf5.OpenFiles() as files, hdf5.hdf5_errors(file):
            top = files[file]
            old = hdf5.read_attributes(top, str(file))  # before 0.5.0 there is no metadata.json
            super().__init__(folder if about else file, {**old, **about})
            self.key = hdf5.file_digest(
                file, self.dataset_metadata.get("observation_space"), self.dataset_metadata.get("action_space")
            )
            self.episodes = sort_numbered(list(top), "episode_")
            self.numbers = [int(n[8:]) for n in self.episodes]
            if not self.episodes:
                raise UserError("expected groups episode_0, episode_1, ..., found none", where=file,
                                hint="the data set holds no episode")
            lengths, found, self._lies, self._own = zip(*(self._episode(top[e], e) for e in self.episodes), strict=True)
            self._set_schema(lengths, found, lambda e: f"{file}, {self.episodes[e]}")
            self.schema = hdf5.restore_column_order(self.schema, top)

    def _episode(self, group, episode) -> tuple[
            int, dict[str, tuple[Feature, int]], dict[str, hdf5.ContiguousLayout], dict[str, Any]]:
        """Steps, (feature, rows) of each array, where arrays lie, facts."""
        where, found, lies, holes = f"{self.file}, {episode}", {}, {}, []
        arrays = hdf5.arrays(group, where)
        if "rewards" not in arrays or not arrays["rewards"].shape or not arrays["rewards"].shape[0]:
            raise UserError(f"expected an array rewards, with a row for each step, found {', '.join(arrays) or 'none'}",
                            where=where, hint=_DAMAGE)
        steps = arrays["rewards"].shape[0]
        own = hdf5.read_attributes(group, where)
        said = own.get("total_steps", steps)
        if np.shape(said) != () or said != steps:
            raise UserError(f"expected total_steps to be {steps}, the rows of rewards, found {said}", where=where,
                            hint="correct the attribute, or take the file from a copy")
        for key, array in arrays.items():
            filled = array.filled_marker
            if filled == "all" or key.startswith("infos/") and not array.shape:
                continue
            if array.has_unwritten_chunks:
                holes.append(key)
            if self.encoded(key, array):
                f = self._sizes.get(key) or self._size_of(array, key, where)
            else:
                f = self.image_feature(key, hdf5.array_feature(_name(key, None), array, f"{where}, {key}",
                                                  flag=_name(key, None) in _FLAGS))
            if key.startswith("observations") and array.shape[0] != steps + 1:
                raise UserError(f"expected {steps + 1} rows for {steps} steps, found {array.shape[0]}",
                                where=f"{where}, {key}", hint=_DAMAGE)
            found[key] = f, array.shape[0] - (filled == "last")
            if at := array.layout:
                lies[key] = at
        if holes:
            self.warnings.append(f"{episode}: parts of {', '.join(holes)} were never written, and read as zeros")
        return steps, found, lies, own

    def encoded(self, key, array) -> bool:
        if hdf5.is_variable_bytes(array):
            return True
        if array.dtype != np.uint8 or array.ndim != 2 or not key.startswith(("observations", "actions")):
            return False
        if (shape := self.leaf_shape(key)) is not None:
            return len(shape) > 1
        return array.shape[0] > 0 and array[0, :3].tobytes() == b"\xff\xd8\xff"

    def _size_of(self, array, key, where) -> Feature:
        if not array.shape or not array.shape[0]:
            raise UserError("expected images, found none", where=f"{where}, {key}", hint=_DAMAGE)
        f = Feature("uint8", self.decode_images([array[0]], key, 0, f"{where}, {key}").shape[1:], "image")
        return self._sizes.setdefault(key, f)

    def open_files(self):
        return hdf5.OpenFiles()

    def location(self, name, episode):
        return f"{self.file}, {self.episodes[episode]}/{self.keys[name]}"

    def read_rows(self, files, name, episode, first, stop):
        key, where = self.keys[name], self.location(name, episode)
        path = f"{self.episodes[episode]}/{key}"
        with hdf5.hdf5_errors(where):
            if name not in self._numbers and self.encoded(key, array := files[self.file][path]):
                return self.decode_images(array[first:stop], key, first, where)
        return self._grayscale(name, files.read_rows(self.file, path, first, stop, where, self._lies[episode].get(key)))

    def stored_metadata(self, episode):
        return self._own[episode]


class TablesSource(_MinariSource):
    """Arrow and Parquet storage: a folder an episode."""

    def __init__(self, folder: Path, about: Mapping[str, Any], kind: str):
        super().__init__(folder, about)
        self.kind = kind
        self.numbers = sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal() and p.is_dir())
        if not self.numbers:
            raise UserError(
                "expected folders 0, 1, ..., found none", where=folder, hint="the data set holds no episode"
            )
        self._own = [read_json(self._folder(e) / "metadata.json") for e in range(len(self.numbers))]
        files = [self.episode_folder(e) for e in range(len(self.numbers))]
        self.key = cache.json_digest("minari", *([str(f.resolve()), s.st_mtime_ns, s.st_ctime_ns, s.st_size]
                                            for f in files for s in [f.stat()]))
        lengths, found = [], []
        for e, own in enumerate(self._own):
            steps = own.get("total_steps") if isinstance(own, dict) else None
            if type(steps) is not int or not 0 < steps < 2**53:
                raise UserError(f"expected total_steps, a number above 0, found {steps!r}",
                                where=self._folder(e) / "metadata.json", hint=_DAMAGE)
            lengths.append(steps)
        types = self._shapes = self._types(0)
        for e, steps in enumerate(lengths):
            if e and self._types(e) != types:
                raise UserError("expected the columns of the first episode, found others", where=files[e], hint=_DAMAGE)
            padded = ("actions", *_OUTCOMES)
            found.append({key: steps + (key.split("/")[0] not in padded) for key in types})
        with self.open_files() as tables:
            first = {key: self._feature(tables, key) for key in types}
        found = [{key: (first[key], n) for key, n in rows.items()} for rows in found]
        self._set_schema(lengths, found, lambda e: str(files[e]))

    def _folder(self, e) -> Path:
        return self.path / str(self.numbers[e])

    def episode_folder(self, e) -> Path:
        file = self._folder(e) / f"part-0.{self.kind}"
        if not file.is_file():
            raise UserError("expected a file, found none", where=file, hint="take it from a copy")
        return file

    def _types(self, e) -> dict[str, tuple[pa.DataType, tuple[int, ...] | None]]:
        """Arrow types and the shapes that the file says, by key."""
        file = self.episode_folder(e)
        with arrow.arrow_errors(file):
            if self.kind == "parquet":
                schema = pq.read_schema(file)
            else:
                with pa.memory_map(str(file)) as mapped:
                    schema = pa.ipc.open_file(mapped).schema
            found = dict(leaf for field in schema for leaf in _leaves(field, ""))
        for key in ("observations", "actions", *_OUTCOMES):
            if not any(k.split("/")[0] == key for k in found):
                raise UserError(f"expected a column {key}, found {', '.join(found)}", where=file, hint=_DAMAGE)
        return found

    def _feature(self, tables, key) -> Feature:
        values = self._values(tables, key, 0, 0, 1)
        if values.dtype.kind == "O":
            return Feature("string", values.shape[1:], "string")
        name = _name(key, None)
        f = stored_feature(name, values.shape[1:], values.dtype, name in _FLAGS)
        return self.image_feature(key, f)

    @contextmanager
    def open_files(self) -> Iterator[dict]:
        yield {}  # the last table, by its episode

    def location(self, name, episode):
        return f"{self.episode_folder(episode)}, {self.keys[name]}"

    def _values(self, tables, key, episode, first, stop) -> np.ndarray:
        where = f"{self.episode_folder(episode)}, {key}"
        with arrow.arrow_errors(where):
            if episode not in tables:
                tables.clear()
                tables[episode] = self._table(episode)
            table = tables[episode]
            top, *within = key.split("/")
            array = table.column(top).combine_chunks()
            array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
            for name in within:
                array = array.field(name)
            array = array.slice(first, stop - first)
            if pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type):
                return self.decode_images([v or b"" for v in array.to_pylist()], key, first, where)
            values = arrow.to_numpy(array, where)
            shape = self.leaf_shape(key) if values.dtype.kind != "O" else None
            shape = self._shapes[key][1] if shape is None and key.startswith("infos") else shape
            if shape is not None and int(np.prod(shape)) == int(np.prod(values.shape[1:])):
                values = values.reshape(len(values), *shape)
            return values

    def _table(self, episode) -> pa.Table:
        file = self.episode_folder(episode)
        table = pq.read_table(file) if self.kind == "parquet" else pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        steps = self._own[episode]["total_steps"]
        if table.num_rows != steps + 1:
            raise UserError(f"expected {steps + 1} rows for {steps} steps, found {table.num_rows}", where=file,
                            hint=_DAMAGE)
        return arrow.validate_table(table, file)

    def read_rows(self, files, name, episode, first, stop):
        return self._grayscale(name, self._values(files, self.keys[name], episode, first, stop))

    def stored_metadata(self, episode):
        return self._own[episode]


def _leaves(field: pa.Field, prefix: str):
    if pa.types.is_struct(field.type):
        for inner in field.type:
            yield from _leaves(inner, f"{prefix}{field.name}/")
        return
    said = (field.metadata or {}).get(b"shape")
    shape = tuple(int(n) for n in said.decode().split(",") if n) if said is not None else None
    yield f"{prefix}{field.name}", (field.type, shape)


def _name(key: str, f: Feature | None) -> str:
    """The column of an array."""
    top, _, within = key.partition("/")
    within = ".".join(re.sub(r"^_index_(\d+)$", r"\1", part) for part in within.split("/"))
    if top == "observations":
        if f is not None and f.kind == "image":
            return f"observation.images.{within or 'image'}"
        return f"observation.{within or 'state'}"
    top = _NAMES.get(top, top)
    return f"{top}.{within}" if within else top


# -- writing --------------------------------------------------------------------------------------------------------


def capability(data: Dataset) -> FormatCapability:
    return _plan(data)[0]


def write(data: Dataset, path: Path) -> None:
    """A new folder that Minari opens, there whole or not at all. Images are stored as they are, not as JPEG. Where an
    episode has no row after the last action, its last observation is written twice; rewards and ends that the data do
    not have are zeros. Both are marked, and are no part of the data when they are read here."""
    h5py = hdf5.import_h5py()
    holds, keys, about = _plan(data)
    name = re.sub(r"-v\d+$", "", path.name) or "data"
    version = re.search(r"-v(\d+)$", path.name)
    with cache.disk_errors(path), whole_folder(path) as part:
        folder = part / "data"
        folder.mkdir()
        with h5py.File(folder / "main_data.hdf5", "w", track_order=True) as file:
            hdf5.store_column_order(file, data, holds)
            for i, e in enumerate(data):
                _put(file.create_group(f"episode_{i}"), i, e, keys, holds)
        features = data.features()
        size = round((folder / "main_data.hdf5").stat().st_size / 1e6, 1)
        said = {"fps": data.fps, "robot_type": data.metadata.get("robot_type")}
        unknown = {"code_permalink": None, "author": [], "author_email": [], "algorithm_name": None, "description": "",
                   hdf5.FILLED_ATTRIBUTE: "all"}
        write_json(folder / "metadata.json", {
            **(about or unknown), "total_episodes": len(data), "total_steps": int(row_counts(data).sum()),
            "data_format": "hdf5", "jpeg_encoding": False,
            "observation_space": json.dumps(_space("observations", keys, features, data)),
            "action_space": json.dumps(_space("actions", keys, features, data)),
            "dataset_id": f"{re.sub(r'[^-_a-zA-Z0-9]', '-', name)}-v{version[1] if version else 0}",
            "minari_version": _VERSION, "dataset_size": size, **{k: v for k, v in said.items() if v is not None}})
        sidecar.write_sidecar(part, data, holds)


def _put(group, i, e, keys, holds):
    steps = len(e)
    group.attrs["id"], group.attrs["total_steps"] = i, steps
    for key in holds.metadata_keys - {"minari"}:
        if key in e.metadata:
            group.attrs[key] = e.metadata[key]
    for name, key in keys.items():
        column, longer = np.asarray(e.steps[name]), key.startswith(("observations", "infos/"))
        short = longer and len(column) == steps
        column = np.concatenate([column, column[-1:]]) if short else column[:steps + longer]
        hdf5.write_column(group, key, column, filled="last" if short else "")
    for key in _OUTCOMES:
        if key not in group:
            hdf5.write_column(group, key, np.zeros(steps, np.float64 if key == "rewards" else bool), filled="all")


def _plan(data: Dataset) -> tuple[FormatCapability, dict[str, str], dict]:
    features = data.features()
    seen = [n for n, f in features.items() if n.startswith("observation.") and f.dtype != "bool"
            and hdf5.is_storable(data, n, f)]
    acts = [n for n, f in features.items() if (n == "action" or n.startswith("action.")) and f.dtype != "bool"
            and f.kind != "string"]
    acts = ["action"] if "action" in acts else acts
    if not seen or not acts:
        raise UserError(f"expected an action and an observation, found {', '.join(features)}", where="minari",
                        hint="choose another format, or name the columns action and observation.state")

    def key(name, f):
        if name in seen:
            within = name.removeprefix("observation." + "images." * (f.kind == "image"))
            return "observations" if seen == ["observation.state"] else f"observations/{within}"
        if name in acts:
            return "actions" if name == "action" else f"actions/{name[7:]}"
        if name in _KEYS:
            ok = name == "next.reward" and f.shape in ((), (1,)) or (f.dtype, f.shape) == ("bool", ())
            return _KEYS[name] if ok else None
        return f"infos/{name.removeprefix('infos.')}"

    keys, places = hdf5.column_encodings(data, key, _name, last=lambda k: k.startswith(("observations", "infos/")),
                               flags=_FLAGS)
    facts = hdf5.storable_metadata(data, {"id", "total_steps", "options", "minari"})
    about = data[0].metadata.get("minari")
    if (
        isinstance(about, dict)
        and about
        and not about.keys() & (_COUNTED | {"fps", "robot_type", hdf5.FILLED_ATTRIBUTE})
        and all(e.metadata.get("minari") == about for e in data)
        and _json(about)
    ):
        facts |= {"minari"}
    else:
        about = {}
    robot = data.metadata.get("robot_type")
    return (
        FormatCapability(places, fps=True, robot_type=robot is None or isinstance(robot, str), metadata_keys=facts),
        keys,
        about,
    )


def _json(value) -> bool:
    try:
        return json.loads(json.dumps(value)) == value
    except (TypeError, ValueError):
        return False


def _space(top: str, keys, features, data) -> dict:
    """As Minari writes spaces: a Box without bounds for numbers, of a dictionary where there are several columns."""
    own = {key: name for name, key in keys.items() if key.split("/")[0] == top}
    if list(own) == [top]:
        return _leaf(own[top], features[own[top]], data)
    return {"type": "Dict", "subspaces": {key.partition("/")[2]: _leaf(name, features[name], data)
                                          for key, name in own.items()}}


def _leaf(name: str, f: Feature, data) -> dict:
    if f.kind == "string":
        texts = {str(t) for e in data for t in set(np.ravel(e.steps[name]).tolist())}
        return {"type": "Text", "max_length": max(1, *map(len, texts)), "min_length": min(map(len, texts)),
                "charset": "".join(sorted({c for t in texts for c in t})) or " "}
    if f.dtype == "int64" and not f.shape and f.num_classes:
        return {"type": "Discrete", "dtype": "int64", "start": 0, "n": int(f.num_classes[0])}
    dtype = np.dtype(f.dtype)
    low, high = (-np.inf, np.inf) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    low, high = (np.full(f.shape, v, dtype).tolist() for v in (low, high))
    return {"type": "Box", "dtype": f.dtype, "shape": list(f.shape), "low": low, "high": high}

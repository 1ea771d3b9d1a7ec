"""Reader of Minari data sets in HDF5, Arrow and Parquet storage, and writer of HDF5 storage.

Layout: Farama-Foundation/Minari minari/dataset/_storages. An episode of T actions has T+1 observations and infos. In
Arrow and Parquet all columns have T+1 rows: the last row of actions, rewards, terminations and truncations is padding.
The parts of dictionaries and tuples of a space become columns: observations/nested/goal is observation.nested.goal.
Whether images are JPEG is decided by how they are stored, not by `jpeg_encoding`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...core import Feature, UserError
from ...files import write_json
from .. import cache, video
from ..episode import Dataset
from ..sources import ChunkedSource
from .parts import arrow, hdf5, sidecar
from .parts.column_names import sort_numbered
from .parts.file_kinds import minari_folder
from .parts.key_map import END_COLUMNS, KeyMap, common_arrays, decoded_images, is_metadata, metadata, stored_feature
from .parts.read_errors import damaged, first_true, read_json_object
from .parts.sidecar import FormatCapability

_OUTCOMES = ("rewards", "terminations", "truncations")
_COUNTED = {"total_episodes", "total_steps", "data_format", "jpeg_encoding", "observation_space", "action_space",
            "dataset_size", "minari_version", "dataset_id"}  # computed for what is written
_VERSION = "0.5.4"  # files are written in the layout of this version of Minari


class _Keys(KeyMap):
    def column(self, key, feature=None):
        """Returns the column that an array with this key is read as. Parts of tuples are numbered."""
        key = re.sub(r"(?<=/)_index_(\d+)(?=/|$)", r"\1", key)
        top, slash, within = key.partition("/")
        return super().column(self.columns.get(top, top) + slash + within, feature)


KEYS = _Keys({"actions": "action", "rewards": "next.reward", "terminations": "next.terminated",
              "truncations": "next.truncated"}, observation="observations", group="observations/")


def open_minari(path: Path) -> Dataset:
    """Opens a data set: its folder, the folder `data` in it, or its HDF5 file."""
    if path.is_file():
        return Dataset(Hdf5Source(path.parent, {}, path))
    data = minari_folder(path) or path
    about = read_json_object(data / "metadata.json") if (data / "metadata.json").exists() else {}
    kind = about.get("data_format", "hdf5")
    if kind == "hdf5":
        return Dataset(Hdf5Source(data, about, data / "main_data.hdf5"))
    if kind in ("arrow", "parquet"):
        return Dataset(TablesSource(data, about, kind))
    raise UserError(f"data_format {kind!r} is not read, only hdf5, arrow and parquet", where=data / "metadata.json",
                    hint="update understudy, or correct the file")


class _MinariSource(ChunkedSource):
    """Base class of the readers of Minari data sets."""

    ids: list[int]
    stored_metadata: Sequence[Mapping[str, Any]]

    def __init__(self, path: Path, about: Mapping[str, Any]):
        self.path, self.dataset_metadata, self.warnings = path, about, []
        self.spaces = {key: self._space(f"{key[:-1]}_space") for key in ("observations", "actions")}

    def _space(self, key) -> dict | None:
        text = self.dataset_metadata.get(key)
        if text is None:
            return None
        location = f"{self.path / 'metadata.json'}, {key}"
        space = hdf5.decode_json_attribute(text, location) if isinstance(text, str) else text
        if not isinstance(space, dict) or "type" not in space:
            raise damaged(f"this is not a space: {str(text)[:60]!r}", location)
        return space

    def leaf_space(self, key: str) -> dict | None:
        """Returns the space at a path such as "observations/nested/goal"."""
        top, *within = key.split("/")
        space = self.spaces.get(top)
        for name in within:
            parts = space.get("subspaces") if isinstance(space, dict) else None
            if isinstance(parts, list):
                parts = {f"_index_{i}": p for i, p in enumerate(parts)}
            space = parts.get(name) if isinstance(parts, dict) else None
        return space if isinstance(space, dict) else None

    def leaf_shape(self, key: str) -> tuple[int, ...] | None:
        shape = (self.leaf_space(key) or {}).get("shape")
        whole = isinstance(shape, list) and all(isinstance(n, int) and n > 0 for n in shape)
        return tuple(shape) if whole else None

    def _set_schema(self, lengths, episodes: Sequence[dict[str, tuple[Feature, int]]], where):
        """Sets the schema from (feature, rows) by key in each episode. Infos that differ in some are left out."""
        self.lengths = np.array(lengths, np.int64)

        def alike(array):
            return array[0].dtype, array[0].shape

        first: dict[str, tuple] = {}
        for key in dict.fromkeys(k for arrays in episodes for k in arrays if k.startswith("infos/")):
            for e, arrays in enumerate(episodes):
                if key not in arrays or alike(arrays[key]) != first.setdefault(key, alike(arrays[key])) \
                        or arrays[key][1] not in (lengths[e], lengths[e] + 1):
                    self.warnings.append(f"{key}: not the same in every episode ({where(e)} differs), left out")
                    episodes = [{k: a for k, a in arrays.items() if k != key} for arrays in episodes]
                    break
        common = common_arrays(episodes, alike, lambda e, key: f"{where(e)}, {key}")
        features = {key: replace(f, num_classes=self._num_classes(key, f)) if f.kind == "discrete" else f
                    for key, (f, _) in common.items()}
        self.schema, self.keys = KEYS.schema(features, self.path)
        self.row_counts = {name: np.array([arrays[key][1] for arrays in episodes]) for name, key in self.keys.items()}
        for name, key in self.keys.items():
            extra_rows = self.row_counts[name] - self.lengths
            has_last_row = key.startswith(("observations", "infos/"))
            if (e := first_true((extra_rows != 0) & ((extra_rows != 1) | (not has_last_row)))) is not None:
                raise damaged(f"it has {self.row_counts[name][e]} rows instead of {lengths[e]}, one a step",
                              f"{where(e)}, {key}")
        for what, number in (("total_episodes", len(self.lengths)), ("total_steps", int(self.lengths.sum()))):
            if what in self.dataset_metadata and self.dataset_metadata[what] != number:
                self.warnings.append(f"metadata, {what}: {self.dataset_metadata[what]}, but there are {number}")
        declared = {k: v for k, v in self.dataset_metadata.items() if k not in _COUNTED | {"fps", "robot_type"}}
        self._declared_metadata = {"minari": declared} if declared and hdf5.FILLED_ATTRIBUTE not in declared else {}
        version, fps, robot_type = map(self.dataset_metadata.get, ("minari_version", "fps", "robot_type"))
        self.metadata = metadata("minari", self.path, self.warnings, str(version or ""), fps, robot_type)

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
        """Decodes images to (rows, H, W, C), with one channel where the space has no colors."""
        shape = self.leaf_shape(key)
        return decoded_images(values, 1 if shape is not None and len(shape) == 2 else 3, first, where)

    def image_feature(self, key: str, f: Feature) -> Feature:
        """Returns the feature of images, with one channel for gray pictures (H, W)."""
        grey = f.dtype == "uint8" and len(f.shape) == 2 and key.startswith("observations") and min(f.shape) > 7
        return Feature("uint8", (*f.shape, 1), "image") if grey else f

    def _grayscale(self, name, values) -> np.ndarray:
        f = self.schema[name]
        return values[..., None] if f.kind == "image" and f.shape[2] == 1 and values.ndim == 3 else values

    def episode_metadata(self, episode):
        own = {k: v for k, v in self.stored_metadata[episode].items() if k != "total_steps"}
        if own.get("id") == self.ids[episode] == episode:
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
    """Reader of Minari's HDF5 storage: one file with a group for each episode.

    Args:
        about: The contents of metadata.json. Empty for a file without it.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], file: Path):
        self.file, self._sizes = file, {}  # of encoded images: the size of the first image
        self._layouts: dict[str, hdf5.ContiguousLayout] = {}  # layouts of contiguous arrays, by key
        if not file.is_file():
            raise damaged("the file is missing", file)
        with hdf5.OpenFiles() as files, hdf5.hdf5_errors(file):
            top = files[file]
            old = hdf5.read_attributes(top, str(file))  # before 0.5.0 there is no metadata.json
            super().__init__(folder if about else file, {**old, **about})
            spaces = [self.dataset_metadata.get(key) for key in ("observation_space", "action_space")]
            self.key = cache.files_digest([file], "minari", spaces)
            self.episodes = sort_numbered(list(top), "episode_")
            self.ids = [int(n[8:]) for n in self.episodes]
            if not self.episodes:
                raise damaged("there are no groups episode_0, episode_1, ...", file)
            parts = zip(*(self._episode(top[e], e) for e in self.episodes), strict=True)
            lengths, features, self.stored_metadata = parts
            self._set_schema(lengths, features, lambda e: f"{file}, {self.episodes[e]}")
            self.schema = hdf5.restore_column_order(self.schema, top)

    def _episode(self, group, episode) -> tuple[int, dict[str, tuple[Feature, int]], dict[str, Any]]:
        """Reads number of steps, (feature, rows) of each array, and metadata of one episode."""
        location, features = f"{self.file}, {episode}", {}
        arrays, own = hdf5.arrays(group, location), hdf5.read_attributes(group, location)
        steps = hdf5.count_steps(arrays, "rewards", location, ("total_steps", own["total_steps"])
                                 if "total_steps" in own else None)
        arrays = {key: array for key, array in arrays.items()
                  if array.filled_marker != "all" and (array.shape or not key.startswith("infos/"))}
        for key, array in arrays.items():
            column = KEYS.column(key)
            if is_metadata(column, array.shape, (steps, steps + 1)):
                own.setdefault(column, hdf5.to_json_value(array[()], f"{location}, {key}"))
                continue
            f = self._size_of(array, key, location) if self.encoded(key, array) else \
                self.image_feature(key, hdf5.array_feature(column, array, f"{location}, {key}", column in END_COLUMNS))
            if key.startswith("observations"):
                hdf5.check_rows(array, steps + 1, f"for {steps} steps", f"{location}, {key}")
            features[key] = f, array.shape[0] - (array.filled_marker == "last")
            if at := array.layout:
                self._layouts[f"{episode}/{key}"] = at
        hdf5.warn_of_holes(arrays, episode, self.warnings)
        return steps, features, own

    def encoded(self, key, array) -> bool:
        if hdf5.is_variable_bytes(array):
            return True
        if array.dtype != np.uint8 or len(array.shape) != 2 or not key.startswith(("observations", "actions")):
            return False
        if (shape := self.leaf_shape(key)) is not None:
            return len(shape) > 1
        return array.shape[0] > 0 and video.image_kind(array[0, :3].tobytes()) == "jpeg"

    def _size_of(self, array, key, where) -> Feature:
        if key in self._sizes:
            return self._sizes[key]
        if not array.shape or not array.shape[0]:
            raise damaged("there are no images", f"{where}, {key}")
        f = Feature("uint8", self.decode_images([array[0]], key, 0, f"{where}, {key}").shape[1:], "image")
        return self._sizes.setdefault(key, f)

    def open_files(self):
        return hdf5.OpenFiles(self._layouts)

    def location(self, name, episode):
        return f"{self.file}, {self.episodes[episode]}/{self.keys[name]}"

    def read_rows(self, files, name, episode, first, stop):
        key, location = self.keys[name], self.location(name, episode)
        path = f"{self.episodes[episode]}/{key}"
        with hdf5.hdf5_errors(location):
            if name not in self.numeric_columns and self.encoded(key, array := files[self.file][path]):
                return self.decode_images(array[first:stop], key, first, location)
        return self._grayscale(name, files.read_rows(self.file, path, first, stop, location))


class TablesSource(_MinariSource):
    """Reader of Minari's Arrow and Parquet storage: a folder for each episode.

    Args:
        kind: "arrow" or "parquet".
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], kind: str):
        super().__init__(folder, about)
        self.kind = kind
        self.ids = sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal() and p.is_dir())
        if not self.ids:
            raise damaged("there are no folders 0, 1, ...", folder)
        self.stored_metadata = [read_json_object(self._folder(e) / "metadata.json") for e in range(len(self.ids))]
        files = [self.episode_folder(e) for e in range(len(self.ids))]
        self.key = cache.files_digest(files, "minari")
        types = self._shapes = self._types(0)
        for e, stored in enumerate(self.stored_metadata):
            steps = stored.get("total_steps")
            if type(steps) is not int or not 0 < steps < 2**53:
                raise damaged(f"total_steps must be a number above 0, not {steps!r}", self._folder(e) / "metadata.json")
            if e and self._types(e) != types:
                raise damaged("the columns are not those of the first episode", files[e])
        with self.open_files() as tables:
            features = {key: self._feature(tables, key) for key in types}
        lengths = [stored["total_steps"] for stored in self.stored_metadata]
        padded = {key for key in types if key.split("/")[0] in ("actions", *_OUTCOMES)}
        episode_features = [{key: (f, n + (key not in padded)) for key, f in features.items()} for n in lengths]
        self._set_schema(lengths, episode_features, lambda e: str(files[e]))

    def _folder(self, e) -> Path:
        return self.path / str(self.ids[e])

    def episode_folder(self, e) -> Path:
        file = self._folder(e) / f"part-0.{self.kind}"
        if not file.is_file():
            raise damaged("the file is missing", file)
        return file

    def _types(self, e) -> dict[str, tuple[pa.DataType, tuple[int, ...] | None]]:
        """Returns the Arrow types, and the shapes that the file states, by key."""
        file = self.episode_folder(e)
        with arrow.arrow_errors(file):
            if self.kind == "parquet":
                schema = pq.read_schema(file.absolute())
            else:
                with pa.memory_map(str(file)) as mapped:
                    schema = pa.ipc.open_file(mapped).schema
            leaves = dict(leaf for field in schema for leaf in _leaves(field, ""))
        for key in ("observations", "actions", *_OUTCOMES):
            if not any(k.split("/")[0] == key for k in leaves):
                raise damaged(f"there is no column {key}; there are {', '.join(leaves)}", file)
        return leaves

    def _feature(self, tables, key) -> Feature:
        values = self._values(tables, key, 0, 0, 1)
        if values.dtype.kind == "O":
            return Feature("string", values.shape[1:], "string")
        column = KEYS.column(key)
        return self.image_feature(key, stored_feature(column, values.shape[1:], values.dtype, column in END_COLUMNS))

    def open_files(self):
        return nullcontext({})  # the last table, by its episode

    def location(self, name, episode):
        return f"{self.episode_folder(episode)}, {self.keys[name]}"

    def _values(self, tables, key, episode, first, stop) -> np.ndarray:
        location = f"{self.episode_folder(episode)}, {key}"
        with arrow.arrow_errors(location):
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
                return self.decode_images([v or b"" for v in array.to_pylist()], key, first, location)
            values = arrow.to_numpy(array, location)
            shape = self.leaf_shape(key) if values.dtype.kind != "O" else None
            shape = self._shapes[key][1] if shape is None and key.startswith("infos") else shape
            if shape is not None and int(np.prod(shape)) == int(np.prod(values.shape[1:])):
                values = values.reshape(len(values), *shape)
            return values

    def _table(self, episode) -> pa.Table:
        file = self.episode_folder(episode)
        table = (pq.read_table(file.absolute()) if self.kind == "parquet" else
                 pa.ipc.open_file(pa.memory_map(str(file))).read_all())
        steps = self.stored_metadata[episode]["total_steps"]
        if table.num_rows != steps + 1:
            raise damaged(f"it has {table.num_rows} rows instead of {steps + 1}, for {steps} steps", file)
        return arrow.validate_table(table, file)

    def read_rows(self, files, name, episode, first, stop):
        return self._grayscale(name, self._values(files, self.keys[name], episode, first, stop))


def _leaves(field: pa.Field, prefix: str):
    if pa.types.is_struct(field.type):
        for inner in field.type:
            yield from _leaves(inner, f"{prefix}{field.name}/")
        return
    shape_text = (field.metadata or {}).get(b"shape")
    shape = tuple(int(n) for n in shape_text.decode().split(",") if n) if shape_text is not None else None
    yield f"{prefix}{field.name}", (field.type, shape)


# -- writing --------------------------------------------------------------------------------------------------------


def capability(data: Dataset) -> FormatCapability:
    """Returns which columns and metadata of a data set this format can store."""
    return _plan(data)[0]


def write(data: Dataset, path: Path) -> None:
    """Writes a folder that Minari opens, completely or not at all.

    Images are stored without compression. If an episode has no row after the last action, its last observation is
    written twice. Rewards and ends that the data do not have are zeros. Both are marked and not read again.

    Args:
        path: The new folder. A name such as "demos-v0" has the version at its end.
    """
    h5py = hdf5.import_h5py()
    holds, keys, about = _plan(data)
    hdf5.check_space(path, data, len(data) * (len(keys) + 5))
    name = re.sub(r"-v\d+$", "", path.name) or "data"
    version = re.search(r"-v(\d+)$", path.name)
    features = data.features()
    with sidecar.new_folder(path, data, holds) as part:
        folder = part / "data"
        folder.mkdir()
        with h5py.File(folder / "main_data.hdf5", "w", track_order=True) as file:
            hdf5.store_column_order(file, features, holds)
            for i, e in enumerate(data):
                _write_episode(file.create_group(f"episode_{i}"), i, e, keys, holds)
        size = round((folder / "main_data.hdf5").stat().st_size / 1e6, 1)
        dataset_metadata = {"fps": data.fps, "robot_type": data.metadata.get("robot_type")}
        unknown = {"code_permalink": None, "author": [], "author_email": [], "algorithm_name": None, "description": "",
                   hdf5.FILLED_ATTRIBUTE: "all"}
        write_json(folder / "metadata.json", {
            **(about or unknown), "total_episodes": len(data), "total_steps": data.steps,
            "data_format": "hdf5", "jpeg_encoding": False,
            "observation_space": json.dumps(_space("observations", keys, features, data)),
            "action_space": json.dumps(_space("actions", keys, features, data)),
            "dataset_id": f"{re.sub(r'[^-_a-zA-Z0-9]', '-', name)}-v{version[1] if version else 0}",
            "minari_version": _VERSION, "dataset_size": size,
            **{k: v for k, v in dataset_metadata.items() if v is not None}})


def _write_episode(group, i, e, keys, holds):
    steps = len(e)
    group.attrs["id"], group.attrs["total_steps"] = i, steps
    hdf5.write_metadata(group, e, replace(holds, metadata_keys=holds.metadata_keys - {"minari"}))
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
    observations = [n for n, f in features.items() if n.startswith("observation.") and f.dtype != "bool"
                    and hdf5.is_storable(data, n, f)]
    acts = [n for n, f in features.items() if (n == "action" or n.startswith("action.")) and f.dtype != "bool"
            and f.kind != "string"]
    acts = ["action"] if "action" in acts else acts
    if not observations or not acts:
        raise UserError(f"Minari needs an action and an observation; there are {', '.join(features)}", where="minari",
                        hint="choose another format, or name the columns action and observation.state")

    def key(name, f):
        if name in observations:
            return "observations" if observations == ["observation.state"] else KEYS.key(name, f)
        if name in acts:
            return "actions" if name == "action" else f"actions/{name[7:]}"
        if name in KEYS.columns.values():
            ok = name == "next.reward" and f.shape in ((), (1,)) or (f.dtype, f.shape) == ("bool", ())
            return KEYS.key(name, f) if ok else None
        return f"infos/{name.removeprefix('infos.')}"

    holds, keys = hdf5.plan(data, KEYS, {"id", "total_steps", "options", "minari"}, key,
                            lambda k: k.startswith(("observations", "infos/")), END_COLUMNS)
    metadata_keys, robot = holds.metadata_keys, data.metadata.get("robot_type")
    about = data[0].metadata.get("minari")
    is_same = all(e.metadata.get("minari") == about for e in data)
    computed = _COUNTED | {"fps", "robot_type", hdf5.FILLED_ATTRIBUTE}
    if isinstance(about, dict) and about and is_same and not about.keys() & computed and hdf5.is_json(about):
        metadata_keys |= {"minari"}
    else:
        about = {}
    return replace(holds, robot_type=robot is None or isinstance(robot, str), metadata_keys=metadata_keys), keys, about


def _space(top: str, keys, features, data) -> dict:
    """Returns the space as Minari writes it: a Box without bounds, in a Dict if there are several columns."""
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
    bounds = (-np.inf, np.inf) if dtype.kind == "f" else (np.iinfo(f.dtype).min, np.iinfo(f.dtype).max)
    low, high = (np.full(f.shape, bound, dtype).tolist() for bound in bounds)
    return {"type": "Box", "dtype": f.dtype, "shape": list(f.shape), "low": low, "high": high}

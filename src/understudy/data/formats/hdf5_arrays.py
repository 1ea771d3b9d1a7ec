"""Reader of HDF5 files in a user's own layout. The user names the arrays with the state, the action, and so on.

The arrays hold all steps of all episodes, or each episode has a group of its own in the file, or a file of its own in
the folder. A column is called like its array, with "." for "/".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...core import DataError, Feature, UserError, role, unknown_name
from ...hints import columns_option
from .. import cache
from ..episode import Dataset
from ..sources import ChunkedSource
from .parts import hdf5
from .parts.column_names import array_key, number_sort_key
from .parts.episode_table import boundary_hint, check_lengths, cut_source, cut_table, unknown_boundary
from .parts.file_kinds import episode_files
from .parts.key_map import KeyMap, common_arrays, metadata
from .parts.padded_arrays import MAX_LABEL_VALUES, cut_padded, padded_hint
from .parts.reader_warnings import ArrayWarning, MisreadingWarning, without_arrays

KEYS = KeyMap({"observations": "observation.state", "actions": "action", "rewards": "next.reward"})
_LEVELS = 3  # levels of groups at which episodes are looked for


def open_arrays(path: Path, names: Iterable[str], episode: str | None = None,
                episode_lengths: str | None = None) -> Dataset:
    """Opens an HDF5 file with a custom layout.

    Args:
        path: A file, or a folder of one file per episode.
        names: The arrays that the user named, which have a row for each step.
        episode: Array with a value for each step, which changes where an episode begins.
        episode_lengths: Array of the number of steps of each episode.
    """
    names = list(names) or [n for n in array_names(path) if role(KEYS.column(n)) in ("observation", "action")]
    source = Hdf5ArraysSource(path, [*names, *([] if episode is None else [episode])])
    columns = [name for name, key in source.keys.items() if any(array_key(n, [key]) for n in names)]
    if episode is None and episode_lengths is None:
        if len(source) > 1:
            return Dataset(source)
        shapes = {name: (int(source.row_counts[name][0]), *source.schema[name].shape) for name in columns}
        if hint := padded_hint(shapes, source.lists):
            raise DataError("nothing says where its episodes end", where=path, hint=hint)
        data = cut_table(source, path)
        hint = boundary_hint(source.lists, int(source.lengths[0])) if len(data) == 1 else ""
        doubts = [MisreadingWarning(f"the file is read as one episode, but {hint}")] if hint else []
        warnings = [*data.metadata["warnings"], *doubts]
        return Dataset(data.source, {**data.metadata, "warnings": warnings})
    if len(source) > 1:
        raise UserError(f"there are {len(source)} episodes already, each in a group or file of its own", where=path,
                        hint=f"leave out {'episode' if episode else 'episode_lengths'}=")
    if episode is not None:
        return cut_table(source, path, KEYS.column(str(array_key(episode, source.keys.values()))))
    if (key := array_key(str(episode_lengths), source.lists)) is None:
        raise unknown_boundary("episode_lengths", str(episode_lengths), {**source.lists, **source.schema})
    others = {k: values for k, values in source.lists.items() if k not in source.keys.values()}
    padded = cut_padded(source, columns, source.lists[key], key, others)
    if padded is not None:
        return padded
    data = cut_source(source, check_lengths(source.lists[key], int(source.lengths[0]), f"{path}, {key}"))
    warnings = without_arrays(data.metadata["warnings"], [key])  # a warning that it is not a column
    return Dataset(data.source, {**data.metadata, "warnings": warnings})


def array_names(path: Path) -> list[str]:
    """Returns the names of the arrays in the first file, or within a group if each episode has a numbered group."""
    with hdf5.OpenFiles() as files, hdf5.hdf5_errors(path):
        file = episode_files(path, "hdf5")[0]
        names = list(hdf5.arrays(files[file], str(file)))
    within = list(dict.fromkeys(re.sub(r"^(\w+/)?\w*\d+/", "", name) for name in names))
    return within if 2 * len(within) <= len(names) else names


class Hdf5ArraysSource(ChunkedSource):
    """Reader of arrays in one HDF5 file, in groups of one file, or in the files of a folder.

    Attributes:
        keys: Path of the array of each column, in its file or group.
        lists: Numbers of small arrays of one or two dimensions, if there is one episode.
    """

    def __init__(self, path: Path, names: list[str]):
        self.path, self.files = path, episode_files(path, "hdf5")
        self.key, warnings = cache.files_digest(self.files, "hdf5 arrays", names), []
        with hdf5.OpenFiles() as files:
            self._parts, columns = [], []
            for file in self.files:  # only the last file stays open
                self._parts += (parts := self._find_parts(files[file], file, names))
                columns += [self._columns(*part, names, warnings) for part in parts]
            self.lengths = np.array([steps for steps, _ in columns], np.int64)
            self._build_schema([arrays for _, arrays in columns], names, warnings)
            attributes = hdf5.read_attributes(files[self.files[0]], str(self.files[0]))
            self._episode_metadata = [self._attributes(files[file], file, prefix) for file, prefix, _ in self._parts]
            self.lists = self._read_lists() if len(self._parts) == 1 else {}
        self._parts = [(file, prefix, {}) for file, prefix, _ in self._parts]  # the arrays are of files that are closed
        self.metadata = metadata("hdf5", path, list(dict.fromkeys(warnings)), fps=attributes.get("fps"))

    def _find_parts(self, file, path: Path, names) -> list[tuple[Path, str, Mapping[str, hdf5.ArrayInfo]]]:
        """Finds the groups of a file that have the named arrays: the file itself, or one for each episode."""
        with hdf5.hdf5_errors(path):
            everything = hdf5.arrays(file, str(path))
        levels: list[dict[str, dict[str, hdf5.ArrayInfo]]] = [{} for _ in range(_LEVELS)]
        for key, array in everything.items():
            pieces = key.split("/")
            for level in range(min(_LEVELS, len(pieces))):
                prefix = "".join(f"{piece}/" for piece in pieces[:level])
                levels[level].setdefault(prefix, {})["/".join(pieces[level:])] = array
        matches = [max((sum(array_key(n, arrays) is not None for n in names) for arrays in groups.values()), default=0)
                   for groups in levels]
        level = int(np.argmax(matches))
        missing = next((n for n in names if not any(array_key(n, arrays) for arrays in levels[level].values())), None)
        if missing is not None:
            groups = levels[level if matches[level] else 0]
            valid_keys = dict.fromkeys(key for arrays in groups.values() for key in arrays)
            raise unknown_name("array", missing, valid_keys, path, error=DataError,
                               hint=f"name one of these: {columns_option('NAME=ARRAY')}")
        groups = {p: arrays for p, arrays in levels[level].items() if any(array_key(n, arrays) for n in names)}
        return [(path, prefix, groups[prefix]) for prefix in sorted(groups, key=number_sort_key)]

    def _build_schema(self, columns: list[dict[str, tuple[Feature, int]]], names, warnings) -> None:
        """Sets the schema: the columns that all episodes have."""
        common = common_arrays(columns, lambda column: (column[0].dtype, column[0].shape),
                               lambda e, key: f"{self.location_of(e)}, {key}",
                               lambda key: not any(array_key(n, [key]) for n in names),
                               lambda key, e: warnings.append(ArrayWarning.about(
                                   key, f"{self.location_of(e)} has none: left out")))
        self.schema, self.keys = KEYS.schema({key: f for key, (f, _) in common.items()}, self.path)
        self.row_counts = {name: np.array([arrays[key][1] for arrays in columns], np.int64)
                           for name, key in self.keys.items()}

    def _columns(self, file, prefix, arrays, names, warnings) -> tuple[int, dict[str, tuple[Feature, int]]]:
        """Returns the number of steps, and the feature and rows of each array that has a row for each step."""
        named = {key for n in names if (key := array_key(n, arrays)) is not None}
        steps = min(arrays[key].shape[0] if arrays[key].shape else 0 for key in named)
        if steps < 1:
            raise DataError("there are no steps", where=f"{file}, {prefix}", hint="remove the episode")
        columns = {}
        for key, array in arrays.items():
            rows = array.shape[0] if array.shape else 0
            location = f"{file}, {prefix}{key}"
            if rows not in (steps, steps + 1):
                if key in named:
                    raise DataError(f"it has {rows} rows instead of {steps}, or one more", where=location,
                                    hint="name arrays that have a row for each step")
                warnings.append(ArrayWarning.about(key, f"{array.shape}, not a row for each step: left out"))
                continue
            try:
                columns[key] = hdf5.array_feature(KEYS.column(key), array, location), rows
            except UserError as error:
                if key in named:
                    raise
                warnings.append(ArrayWarning.about(key, f"{error.problem}: left out"))
        return steps, columns

    def _attributes(self, file, path: Path, prefix: str) -> dict[str, Any]:
        """Reads the metadata of an episode from HDF5 attributes."""
        node = file[prefix] if prefix else file
        return hdf5.read_attributes(node, f"{path}, {prefix}", ("fps",)) if len(self._parts) > 1 else {}

    def _read_lists(self) -> dict[str, np.ndarray]:
        file, prefix, arrays = self._parts[0]
        return {key: hdf5.read_rows(array, 0, array.shape[0], f"{file}, {prefix}{key}") for key, array in arrays.items()
                if len(array.shape) in (1, 2) and 0 < array.size < MAX_LABEL_VALUES and array.dtype.kind in "biuf"}

    open_files = staticmethod(hdf5.OpenFiles)

    def location_of(self, episode: int) -> str:
        file, prefix, _ = self._parts[episode]
        return f"{file}, {prefix}".removesuffix(", ").rstrip("/")

    def location(self, name, episode):
        return f"{self.location_of(episode)}, {self.keys[name]}"

    def read_rows(self, files, name, episode, first, stop):
        file, prefix, _ = self._parts[episode]
        return files.read_rows(file, f"{prefix}{self.keys[name]}", first, stop, self.location(name, episode))

    def episode_metadata(self, episode):
        return self._episode_metadata[episode]

"""HDF5 files of D4RL: arrays over all steps of all episodes (Fu et al. 2020).

Layout: rail-berkeley/d4rl d4rl/offline_env.py. An episode goes up to and including a row with `terminals` (the
environment ended it: next.terminated) or `timeouts` (a time limit did: next.truncated). The loaders of D4RL use the row
that ends an episode as the start of the next one, or drop it. Here it stays in the episode in which it was recorded.
`next_observations` has the row after the last action.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...core import UserError
from ...hints import columns_option
from .. import cache
from ..episode import Dataset, episode_starts
from ..sources import ChunkedSource
from .parts import hdf5, sidecar
from .parts.key_map import END_COLUMNS, MAX_METADATA_VALUES, KeyMap, is_metadata, metadata
from .parts.sidecar import FormatCapability

KEYS = KeyMap({"actions": "action", "rewards": "next.reward", "terminals": "next.terminated",
               "timeouts": "next.truncated"}, observation="observations", group="observations/",
              reserved=frozenset({"observations", "next_observations", "infos", "metadata", "virtual", "actions",
                                  "rewards", "terminals", "timeouts"}))
_FLAGS = ("terminals", "timeouts")
_N_COMPARED_ROWS = 4096  # rows in which next_observations is compared with observations
_TEXT_ROWS = 8192  # rows of text that are read at a time


class D4rlSource(ChunkedSource):
    """Reader of a D4RL file.

    Args:
        max_episode_steps: Time limit of the environment, which ended episodes in files without `timeouts`.
    """

    def __init__(self, path: Path, max_episode_steps: int | None = None):
        limit = max_episode_steps
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise UserError(f"it must be a number of steps, not {limit!r}", where="max_episode_steps",
                            hint="give the environment's limit, such as 1000")
        self.path, self.key, warnings = path, cache.files_digest([path], "d4rl", limit), []
        with hdf5.OpenFiles() as files, hdf5.hdf5_errors(path):
            file = files[path]
            arrays = {k: a for k, a in hdf5.arrays(file, str(path)).items()
                      if a.filled_marker != "all" or k in _FLAGS}
            self._episode_metadata = hdf5.read_attributes(file, str(path))
            self._file_metadata = self._metadata(arrays, warnings)
            steps = self._columns(arrays, warnings)
            self._bound(arrays, steps, limit, warnings)
            if "next_observations" in arrays:
                self._check_next_observations(arrays, steps, warnings)
            self.schema = hdf5.restore_column_order(self.schema, file)
        self._texts: dict[str, tuple[int, int, np.ndarray]] = {}  # column: its first row, the next row, rows
        self.metadata = metadata("d4rl", path, warnings, fps=self._episode_metadata.pop("fps", None),
                                 robot_type=self._episode_metadata.pop("robot_type", None))
        self._episode_metadata |= {"metadata": self._file_metadata} if self._file_metadata else {}

    def _metadata(self, arrays, warnings) -> dict[str, Any]:
        """Reads the short arrays and single values of metadata/. Weights of policies are left out."""
        file_metadata = {}
        for key in [k for k in arrays if k.startswith(("metadata/", "virtual/"))]:
            array = arrays.pop(key)
            if key.startswith("metadata/") and array.size <= MAX_METADATA_VALUES and (
                    hdf5.is_text(array) or array.dtype.kind in "biuf"):
                file_metadata[key[9:]] = hdf5.to_json_value(array[()], f"{self.path}, {key}")
            else:
                warnings.append(f"{key}: {array.shape}, left out")
        return file_metadata

    def _columns(self, arrays, warnings) -> int:
        """Sets the schema and returns the number of steps."""
        if "terminals" not in arrays:
            raise UserError(f"there is no array terminals; there are {', '.join(arrays) or 'no arrays'}",
                            where=self.path, hint="add the array, or take the file from a copy. If the layout is your "
                            f"own, say where episodes end: {columns_option('episode_lengths=ARRAY')} or episode=ARRAY")
        steps, features = hdf5.count_steps(arrays, "actions", str(self.path)), {}
        for key, array in arrays.items():
            location, column = f"{self.path}, {key}", KEYS.column(key)
            if is_metadata(column, array.shape, (steps,)):
                self._file_metadata[column] = hdf5.to_json_value(array[()], location)
                continue
            f = hdf5.array_feature(column, array, location, key in _FLAGS)
            hdf5.check_rows(array, steps, "as actions has", location)
            if array.has_unwritten_chunks:
                warnings.append(f"{key}: parts of it were never written, and read as zeros")
            if key != "next_observations" and array.filled_marker != "all":
                features[key] = f
        self.schema, self.keys = KEYS.schema(features, self.path)
        return steps

    def _bound(self, arrays, steps, limit, warnings):
        """Finds the start and length of each episode."""
        if "timeouts" not in arrays and limit is None:
            raise UserError("there is no array timeouts, so the rows that ended an episode at its time limit are not "
                            "known", where=self.path, hint="give the limit of the environment "
                            "(--max-episode-steps 1000, or open_dataset(path, max_episode_steps=1000)), or add the "
                            "array timeouts (bool, one a step)")
        end = np.zeros(steps, bool)
        for key in _FLAGS:
            if key in arrays:
                location = f"{self.path}, {key}"
                values = hdf5.read_rows(arrays[key], 0, steps, location)
                if values.size != steps or not np.isin(values, (0, 1)).all():
                    raise UserError(f"each of {steps} steps must have a flag, 0 or 1, but it is {values.shape} with "
                                    f"{', '.join(map(str, np.unique(values)[:3]))}", where=location,
                                    hint="correct the array, or take the file from a copy")
                end |= values.reshape(steps).astype(bool)
        ends = np.flatnonzero(end) + 1
        if not len(ends) or ends[-1] != steps:
            if limit is None:
                warnings.append(f"the last episode, of {steps - (ends[-1] if len(ends) else 0)} steps, neither ended "
                                "nor ran into a limit: the recording stopped")
            ends = np.append(ends, steps)
        lengths = np.diff(ends, prepend=0)
        if limit is not None:
            lengths = np.array([min(limit, n - at) for n in lengths for at in range(0, int(n), limit)], np.int64)
        self.lengths = lengths.astype(np.int64)
        self._begin = episode_starts(self.lengths)
        self._last = next((n for n, k in self.keys.items() if k == "observations"
                           and "next_observations" in arrays), None)
        self.row_counts = {n: self.lengths + (n == self._last) for n in self.schema}

    def _check_next_observations(self, arrays, steps, warnings):
        if self._last is None:
            warnings.append("next_observations without observations: left out")
            return
        now, after = arrays["observations"], arrays["next_observations"]
        location = f"{self.path}, next_observations"
        if (now.shape, hdf5.is_text(now)) != (after.shape, hdf5.is_text(after)):
            raise UserError(f"the shape is {after.shape}, but observations has {now.shape}", where=location,
                            hint="correct the array, or remove it")
        n = min(steps, _N_COMPARED_ROWS)
        observations, next_observations = (hdf5.read_rows(a, 0, n, location) for a in (now, after))
        within = np.ones(n, bool)
        within[(self._begin + self.lengths - 1)[self._begin + self.lengths - 1 < n]] = within[-1] = False
        at = np.flatnonzero(within)
        is_text = self.schema[self._last].kind == "string"
        if not is_text and not np.allclose(observations[at + 1], next_observations[at], 1e-5, 1e-5, equal_nan=True):
            warnings.append("next_observations are not the next rows of observations: only those that end an episode "
                            "are used")

    open_files = staticmethod(hdf5.OpenFiles)

    def location(self, name, episode):
        return f"{self.path}, {self.keys[name]}, episode {episode} (from row {self._begin[episode]})"

    def read_rows(self, files, name, episode, first, stop):
        begin, steps, location = int(self._begin[episode]), int(self.lengths[episode]), self.location(name, episode)
        if self.schema[name].kind == "string":
            values = self._read_text(files, name, begin + first, begin + min(stop, steps), location)
        else:
            values = files.read_rows(self.path, self.keys[name], begin + first, begin + min(stop, steps), location)
        if stop <= steps:
            return values
        last = files.read_rows(self.path, "next_observations", begin + steps - 1, begin + steps, location)
        return np.concatenate([values, last]) if len(values) else last

    def _read_text(self, files, name, first, stop, where) -> np.ndarray:
        """Reads rows of text. If episodes are read in their order, many rows are read at a time.

        HDF5 stores texts in heaps of some 64 KB. To read one text, a whole heap is read and checked.
        """
        key, total = self.keys[name], int(self.lengths.sum())
        begin, following, texts = self._texts.get(name, (0, 0, np.empty(0, object)))
        if not begin <= first <= stop <= begin + len(texts):
            ahead = max(stop, min(total, first + _TEXT_ROWS)) if first == following else stop
            begin = first
            try:
                texts = files.read_rows(self.path, key, first, ahead, where)
            except UserError:  # perhaps the damage is in a later episode
                texts = files.read_rows(self.path, key, first, stop, where)
        self._texts[name] = begin, stop, texts
        return texts[first - begin: stop - begin]

    def read_episodes(self, files, name, first, stop):
        # The file has all episodes in one array, so they are read at once.
        lengths = self.lengths[first:stop]
        begin, steps, location = int(self._begin[first]), int(lengths.sum()), self.location(name, first)
        values = files.read_rows(self.path, self.keys[name], begin, begin + steps, location)
        if name == self._last:
            ends = np.cumsum(lengths)
            after = files.read_rows(self.path, "next_observations", begin, begin + steps, location)
            values = np.insert(values, ends, after[ends - 1], axis=0)
        rows = int(self.row_counts[name][first:stop].sum())
        return self.cast_to_schema(values, name, rows, int(self._first[name][first]))

    def episode_metadata(self, episode):
        return self._episode_metadata


# -- writing --------------------------------------------------------------------------------------------------------


def capability(data: Dataset) -> FormatCapability:
    """Returns which columns and metadata of a data set this format can store."""
    return _plan(data)[0]


def write(data: Dataset, path: Path) -> None:
    """Writes a D4RL file, completely or not at all.

    One observation is stored as `observations`, and all other observations in infos/. Arrays that D4RL needs and the
    data do not have (rewards, terminals, timeouts) are filled in, marked, and not read again.
    """
    h5py = hdf5.import_h5py()
    holds, keys = _plan(data)
    hdf5.check_space(path, data, len(keys) + 5, observations=2)
    lengths = data.lengths
    steps, first = int(lengths.sum()), episode_starts(lengths)
    features = data.features()
    with sidecar.new_file_with_sidecar(path, data, holds) as part, h5py.File(part, "w") as file:
        hdf5.store_column_order(file, features, holds)
        for name, key in keys.items():
            f, place = features[name], holds.columns[name]
            dtype = h5py.string_dtype() if f.kind == "string" else place.dtype
            shape = (steps, *f.shape)
            chunks = (1, *f.shape) if f.kind == "image" else None
            arrays = [file.create_dataset(key, shape, dtype, chunks=chunks)]
            if place.has_last_row:
                arrays.append(file.create_dataset("next_observations", shape, dtype, chunks=chunks))
            for e, at, n in zip(data, first, lengths, strict=True):
                column = np.asarray(e.steps[name])
                column = column.astype(object) if f.kind == "string" else column
                arrays[0][at: at + n] = column[:n]
                if place.has_last_row:
                    arrays[1][at: at + n] = column[1:]
        for key in ("rewards", *_FLAGS):
            if key not in file:
                values = np.zeros(steps, np.float32 if key == "rewards" else bool)
                if key == "timeouts":  # the last step of each episode that did not terminate
                    values[first + lengths - 1] = ~file["terminals"][:][first + lengths - 1]
                hdf5.write_column(file, key, values, filled="all")
        hdf5.write_metadata(file, data[0], holds, data)


def _plan(data: Dataset) -> tuple[FormatCapability, dict[str, str]]:
    features = data.features()
    observations = [n for n, f in features.items() if n.startswith("observation.") and f.kind != "string"]
    main = "observation.state" if "observation.state" in observations else next(iter(observations), None)
    if main is None or "action" not in features:
        raise UserError(f"D4RL needs a column action and an observation; there are {', '.join(features)}", where="d4rl",
                        hint="choose another format, or name the columns action and observation.state")
    longer = bool((data.rows(main) > data.lengths).all())
    flags = _flags(data, features)

    def key(name, f):
        if name == main:
            return "observations"
        if name.startswith("observation."):
            return f"infos/{name}"
        if name.startswith("infos."):
            return f"infos/{name[6:]}"
        if name in END_COLUMNS and name not in flags or name.startswith(("metadata.", "virtual.")):
            return None
        return KEYS.key(name, f)

    holds, keys = hdf5.plan(data, KEYS, {"fps", "robot_type", "metadata"}, key,
                            lambda k: k == "observations" and longer, END_COLUMNS)
    return replace(holds, metadata_keys=frozenset(k for k in holds.metadata_keys if _is_constant(data, k))), keys


def _is_constant(data: Dataset, key: str) -> bool:
    """Returns whether all episodes have the same value of a key of the metadata."""
    values = [e.metadata.get(key) for e in data]
    return values[0] is not None and all(type(v) is type(values[0]) and v == values[0] for v in values)


def _flags(data, features) -> list[str]:
    """Returns the flag columns by which a reader would find exactly the same episodes again."""
    names = [n for n in END_COLUMNS if n in features and (features[n].dtype, features[n].shape) == ("bool", ())]
    within = {n: any(np.asarray(e.steps[n])[:len(e) - 1].any() for e in data) for n in names}
    names = [n for n in names if not within[n]]
    ended = all(any(e.steps[n][len(e) - 1] for n in names) for e in data)
    return names if ended else [n for n in names if n != "next.truncated"]

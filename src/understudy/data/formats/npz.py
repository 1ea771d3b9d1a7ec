"""Reader and writer of one .npz file: arrays over all steps of all episodes, end to end.

It has observations (N, ...), actions (N, ...) and episode_ends (E,): exclusive ends, in steps. Without these, terminals
and timeouts say where episodes end, as in D4RL. Optional are rewards, terminals, timeouts, next_observations, and fps,
one number. Any array may have one row more per episode: for observations, the one after the last action. Actions may be
left out, and unknown actions are NaN.

Arrays with one row per episode are metadata of the episodes, and so are small arrays of other lengths, such as a camera
matrix. Other arrays of N rows are columns. Arrays are streamed
from the file into the cache, so a file may be larger than memory. Pickled objects are refused.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...core import Feature, UserError, role, short_name
from ...hints import columns_option, nearest_names
from .. import cache
from ..episode import Dataset, episode_starts
from .parts import sidecar
from .parts.column_names import FLAG_COLUMNS, are_flags, array_key, is_plain_flag, standard_name
from .parts.episode_table import (
    EPISODE_COLUMNS,
    boundary_hint,
    check_lengths,
    lengths_from_numbers,
    numbering_notes,
    unknown_boundary,
)
from .parts.key_map import KeyMap, checked_rate, is_metadata, lengths_from_ends, metadata, stored_feature
from .parts.npz_arrays import (
    NpzArchiveSource,
    NpzArrays,
    column_array,
    is_storable_key,
    split_rows,
    whole_array,
    write_npz,
)
from .parts.padded_arrays import MAX_LABEL_VALUES, cut_padded, padded_hint
from .parts.reader_warnings import ArrayWarning, MisreadingWarning
from .parts.sidecar import ColumnEncoding, FormatCapability

KEYS = KeyMap({"observations": "observation.state", "actions": "action", "rewards": "next.reward",
               "terminals": "next.terminated", "timeouts": "next.truncated"}, separator="")
_OTHERS = {  # names in files of other programs
    "obs": "observations", "observation": "observations", "state": "observations", "states": "observations",
    "acts": "actions", "act": "actions", "ends": "episode_ends", "reward": "rewards", "done": "terminals",
    "dones": "terminals", "terminal": "terminals", "terminated": "terminals", "truncated": "timeouts",
    "truncations": "timeouts", "next_obs": "next_observations", "next_states": "next_observations"}
_END_FLAGS = ("terminals", "timeouts")  # each step, where there is no episode_ends
EPISODE_ENDS_HINT = "give episode_ends: the exclusive end of each episode, counted in steps"
_FOLLOWING = "correct next_observations, or leave it out"
_AT_ONCE = 1 << 20  # bytes of each array that are decompressed at once
_MAY_DIFFER = 1e-5  # relative difference of next_observations from the next row, from storing in float32


class NpzSource(NpzArchiveSource):
    """Reader of an .npz file with arrays over all steps of all episodes.

    Args:
        episode: Array with a value for each step, which changes where an episode begins, in place of episode_ends.
        episode_lengths: Array of the number of steps of each episode, in place of episode_ends.
    """

    flags = frozenset(FLAG_COLUMNS)

    def __init__(self, path: Path, episode: str | None = None, episode_lengths: str | None = None):
        self.path, self._file = path, NpzArrays(path)
        self._not_columns = {"episode_ends", "next_observations", "fps", episode, episode_lengths}
        self.key = cache.json_digest(self._file.key, episode, episode_lengths)
        self._end_notes: list[str] = []
        self.lengths = self._find_lengths(episode, episode_lengths)
        self._check_names()
        self._check_last(int(self.lengths.sum()))
        self._assign_arrays()
        notes = [] if episode is None else numbering_notes(self._file.read_array(episode), episode)
        self.metadata = metadata("npz", path, [*self._doubts(), *self._end_notes, *notes], fps=self._fps())

    def _find_lengths(self, episode, episode_lengths) -> np.ndarray:
        headers = self._file.headers
        for option, name in (("episode", episode), ("episode_lengths", episode_lengths)):
            if name is not None and name not in headers:
                raise unknown_boundary(option, name, headers)
        if episode is not None:
            return lengths_from_numbers(self._file.read_array(episode), f"{self.path}, {episode}")
        if episode_lengths is not None:
            lengths, rows = self._file.read_array(episode_lengths), {shape[0] for shape, _ in headers.values() if shape}
            totals = (lengths.sum(), lengths.flat[-1]) if lengths.size else ()  # as lengths, and as ends
            steps = next((n for n in rows if n in totals), count_steps(headers))
            return check_lengths(lengths, steps, f"{self.path}, {episode_lengths}")
        if not says_ends(headers):
            raise UserError(f"there is no array episode_ends; there are {', '.join(headers)}", where=self.path,
                            hint=f"{rename_hint(headers) or EPISODE_ENDS_HINT}; or say which arrays are what: "
                                 + columns_option("state=A", "action=B", "episode_ends=C"))
        if "episode_ends" not in headers:
            return self._lengths_from_flags()
        return lengths_from_ends(self._file.read_array("episode_ends"), f"{self.path}, episode_ends", EPISODE_ENDS_HINT)

    def _lengths_from_flags(self) -> np.ndarray:
        flags = {key: self._file.read_array(key).reshape(-1) for key in _END_FLAGS}
        for key, values in flags.items():
            _check_flags(values, f"{self.path}, {key}")
        terminals, timeouts = flags.values()
        if len(terminals) != len(timeouts):
            raise UserError(f"it has {len(timeouts)} rows, but terminals has {len(terminals)}",
                            where=f"{self.path}, timeouts", hint="each step has a row in both")
        ends = np.flatnonzero((terminals != 0) | (timeouts != 0)) + 1
        if not len(ends):
            raise UserError("there is no array episode_ends, and terminals and timeouts are 0 at all steps",
                            where=self.path, hint=EPISODE_ENDS_HINT)
        if (rest_steps := len(terminals) - int(ends[-1])):
            self._end_notes.append(f"the last episode, of {rest_steps} steps, neither ended nor ran into a limit: the "
                                   "recording stopped")
        return np.diff(np.unique([0, *ends, len(terminals)]))

    def _check_names(self):
        renames = rename_hint(self._file.headers)
        for name, key in (("observation", "observations"), ("action", "actions")):
            may_be_absent = name == "action" and f" as {key}" not in renames
            if not may_be_absent and not any(KEYS.column(k).split(".")[0] == name for k in self._file.headers):
                hint = "add the array, or name one like the column it is (observation.force, action)"
                raise UserError(f"there is no array {key}; there are {', '.join(self._file.headers)}",
                                where=self.path, hint=f"{renames or hint}; or say which is which: "
                                                      + columns_option("state=NAME", "action=NAME"))

    def _check_last(self, end: int):
        """Raises an error if the episode ends fit neither observations nor actions."""
        rows = {key: shape[0] for key, (shape, _) in self._file.headers.items()
                if shape and KEYS.column(key).split(".")[0] in ("observation", "action")}
        longer = end + len(self.lengths)
        key = next((k for k in rows if KEYS.column(k).startswith("action")), "")
        if any(n in (end, longer) for n in rows.values()) and not (key and all(n == longer for n in rows.values())):
            return
        key = key or next(iter(rows))
        steps = rows.get(key, 0)
        place = (f"episode_ends[{len(self.lengths) - 1}]" if "episode_ends" in self._file.headers else
                 " and ".join(_END_FLAGS))
        raise UserError(f"the last end is {end}, but there are {steps} steps (rows of {key})",
                        where=f"{self.path}, {place}", hint=EPISODE_ENDS_HINT + (
                            "; add 1 to each if these are the last steps themselves" if end == steps - 1 else ""))

    def _fps(self) -> float | None:
        if "fps" not in self._file.headers:
            return None
        location, shape = f"{self.path}, fps", self._file.headers["fps"][0]
        if shape not in ((), (1,)):
            raise UserError(f"it must be one number, the steps per second, but has the shape {shape}", where=location,
                            hint="save one, such as fps=10; rates that differ need a file each")
        return checked_rate(self._file.read_array("fps")[0], location)

    def _doubts(self):
        """Yields warnings about arrays whose names suggest another role than the one they are read with."""
        for name, f in self.schema.items():
            if f.kind == "discrete" and role(name) in ("action", "observation"):
                yield ArrayWarning.about(
                    self.keys[name], f"{f.dtype} is read as classes, numbered from 0; if it holds quantities: "
                    f"--columns {short_name(name)}={self.keys[name]}:quantities, or save it as float32")
        for key in self._of_file:
            yield MisreadingWarning(f"{key}: {self._file.headers[key][0]}, not a row for each step or episode: kept as "
                                    "metadata")
        for key in (*self.keys.values(), *self._per_episode):
            if _OTHERS.get(key) in (*KEYS.columns, "next_observations") and _OTHERS[key] not in self._file.headers:
                yield f"{key} is kept under that name; save it as {_OTHERS[key]} if that is what it is" + (
                    ", with a value for each step" if key in self._per_episode else "")

    def _assign_arrays(self):
        """Assigns each array by its number of rows: a column, a column with a last row, or metadata."""
        steps, episodes = int(self.lengths.sum()), len(self.lengths)
        features: dict[str, Feature] = {}
        self._per_episode: list[str] = []
        self._of_file: list[str] = []
        for key, (shape, dtype) in self._file.headers.items():
            if key in self._not_columns:
                continue
            rows = shape[0] if shape else None
            if 0 in shape[1:]:
                raise UserError(f"the shape {shape} has no components", where=f"{self.path}, {key}",
                                hint="leave the array out")
            name = KEYS.column(key)
            if rows == steps + episodes and name.startswith("next."):
                raise UserError(f"it has {rows} rows, one more per episode than the {steps} steps, and what follows a "
                                "step has one for each", where=f"{self.path}, {key}",
                                hint="leave out the row of each episode that no action leads to, such as a first "
                                     "reward of 0")
            if rows == episodes != steps and name.startswith("next."):
                raise UserError(f"it has {rows} rows, one per episode, and what follows a step has one for each of the "
                                f"{steps} steps", where=f"{self.path}, {key}",
                                hint="save one value per step, such as 0 before the last step of an episode; under "
                                     "another name it is metadata of the episodes")
            if rows in (steps, steps + episodes):
                features[key] = self._file.encoded_images(key) or stored_feature(
                    name, shape[1:], dtype, name in FLAG_COLUMNS[:2], has_text=True)
            elif rows == episodes:
                self._per_episode.append(key)
            elif is_metadata(name, shape, (steps, steps + episodes, episodes)):
                self._of_file.append(key)
            else:
                size_text = "is a single value" if rows is None else f"has {rows} rows"
                raise UserError(f"it {size_text} instead of {steps} rows (steps), {steps + episodes} (steps and a last "
                                f"row for each episode) or {episodes} (episodes)", where=f"{self.path}, {key}",
                                hint="correct episode_ends or the array, or leave the array out")
        self.schema, self.keys = KEYS.schema(features, self.path)
        longer = self.lengths + 1
        self.row_counts = {name: self.lengths if self._file.headers[key][0][0] == steps else longer
                           for name, key in self.keys.items()}
        self._spread = ""  # the column that gets its last rows from next_observations
        if "next_observations" in self._file.headers:
            self._check_following(steps)
            if self.row_counts["observation.state"] is not longer:
                self._spread, self.row_counts["observation.state"] = "observation.state", longer

    def _check_following(self, steps):
        shape, _ = self._file.headers["next_observations"]
        if "observation.state" not in self.schema:
            raise UserError("there are next_observations, but no observations",
                            where=f"{self.path}, next_observations", hint=_FOLLOWING)
        if shape != (expected_shape := (steps, *self.schema["observation.state"].shape)):
            raise UserError(f"the shape is {shape}, but observations has {expected_shape}",
                            where=f"{self.path}, next_observations", hint=_FOLLOWING)

    def where(self, name, row):
        return f"{self.path}, {self.keys[name]}[{row}]"

    @cached_property
    def _episode_metadata(self) -> dict[str, list]:
        arrays = {key: self._file.read_array(key) for key in self._per_episode}
        if "success" in arrays and arrays["success"].dtype.kind in "biuf":
            _check_flags(arrays["success"], f"{self.path}, success")
        return {key: values.tolist() for key, values in arrays.items()}

    def episode_metadata(self, episode):
        return {**{key: values[episode] for key, values in self._episode_metadata.items()}, **self._file_metadata}

    @cached_property
    def _file_metadata(self) -> dict[str, Any]:
        arrays = {key: self._file.read_array(key).tolist() for key in self._of_file}
        return {key: values if self._file.headers[key][0] else values[0] for key, values in arrays.items()}

    def place_rows(self, name, row, values):
        return self._moved(np.arange(row, row + len(values))) if name == self._spread else row, values

    def fill(self, out):
        super().fill(out)
        if "next_observations" in self._file.headers:
            self._follow(out["observation.state"])

    def stream_episodes(self, first, stop):
        # All arrays are decompressed in parallel, each of them once.
        follows = "next_observations" in self._file.headers
        if first or follows or "_maps" in self.__dict__ or cache.contains(self.key):
            yield from super().stream_episodes(first, stop)
            return
        cut = [split_rows(self._read(name), self.rows(name)[:stop].tolist()) for name in self.schema]
        for columns in zip(*cut, strict=True):
            yield dict(zip(self.schema, columns, strict=True))

    def _read(self, name) -> Iterator[np.ndarray]:
        for row, values in self._file.iter_rows(self.keys[name], _AT_ONCE):
            yield self.cast_to_schema(values, name, len(values), row)

    def _moved(self, step: np.ndarray) -> np.ndarray:
        """Returns the row of each step in arrays in which every episode has one row more than steps."""
        return step + np.searchsorted(np.cumsum(self.lengths), step, side="right")

    def _follow(self, out):
        """Fills in the last observations from `next_observations`. Each earlier row must equal the next observation."""
        last = np.cumsum(self.lengths) - 1
        for row, values in self._file.iter_rows("next_observations"):
            target_rows = self._moved(np.arange(row, row + len(values))) + 1
            ending = np.isin(np.arange(row, row + len(values)), last)
            if self._spread:
                out[target_rows[ending]] = values[ending]
            same = np.isclose(out[target_rows], values, _MAY_DIFFER, _MAY_DIFFER, equal_nan=True)
            if not same.all():
                at = np.argwhere(~same)[0]
                step = row + int(at[0])
                e = int(np.searchsorted(np.cumsum(self.lengths), step, side="right"))
                raise UserError(f"it is {values[tuple(at)]}, but the next row of observations is "
                                f"{out[target_rows][tuple(at)]}",
                                where=f"{self.path}, next_observations, episode {e}, step "
                                f"{step - int(episode_starts(self.lengths)[e])}, component {tuple(map(int, at[1:]))}",
                                hint="correct episode_ends, or leave next_observations out")


class _ArraysOfOneEpisode(NpzArchiveSource):
    """Reader of an .npz file as one episode: arrays with as many rows as the arrays the user named, or one more."""

    flags = frozenset(FLAG_COLUMNS)

    def __init__(self, path: Path, named: Collection[str]):
        self.path, self._file = path, NpzArrays(path)
        self.key, headers = cache.json_digest(self._file.key, "one episode"), self._file.headers
        steps = min((headers[key][0][0] for key in named if headers[key][0]), default=0)
        self.schema, self.keys = KEYS.schema({
            key: Feature.from_array(np.empty((0, *shape[1:]), np.dtype(dtype).newbyteorder("=")))
            for key, (shape, dtype) in headers.items() if shape and shape[0] in (steps, steps + 1)}, path)
        self.lengths = np.array([steps])
        self.row_counts = {name: np.array([headers[key][0][0]]) for name, key in self.keys.items()}
        fps = self._file.read_array("fps")[0].item() if headers.get("fps", ((2,),))[0] in ((), (1,)) else None
        other_keys = [key for key in headers if key not in (*self.keys.values(), "fps")]
        self.metadata = metadata("npz", path, [
            ArrayWarning.about(key, f"{headers[key][0]}, not a row for each step: left out") for key in other_keys
        ], fps=fps)


def open_padded(path: Path, names: Iterable[str], episode_lengths: str) -> Dataset | None:
    """Opens an .npz file of padded arrays. Returns None if its arrays are not padded: see `cut_padded`.

    Args:
        names: The arrays that the user named, which have a row for each step. By default states and actions.
        episode_lengths: Array of the number of steps of each episode, or their mask.
    """
    file = NpzArrays(path)
    if episode_lengths not in file.headers or not (keys := _step_arrays(file, names)):
        return None
    source = _ArraysOfOneEpisode(path, keys)
    columns = [name for name, key in source.keys.items() if key in keys]
    if len(columns) < len(keys):
        return None
    others = {key: values for key, values in _lists(file).items() if key not in source.keys.values()}
    return cut_padded(source, columns, file.read_array(episode_lengths), episode_lengths, others)


def _step_arrays(file: NpzArrays, names: Iterable[str]) -> list[str]:
    """Returns the arrays that the user named. By default, returns arrays with names of observations and actions."""
    keys = [array_key(name, file.headers) for name in names] or [
        key for key in file.headers if role(standard_name(key)) in ("observation", "action")]
    return [key for key in dict.fromkeys(keys) if key is not None and file.headers[key][0]]


def _lists(file: NpzArrays) -> dict[str, np.ndarray]:
    """Reads the small arrays of one or two dimensions."""
    return {key: file.read_array(key) for key, (shape, dtype) in file.headers.items()
            if len(shape) in (1, 2) and 0 < math.prod(shape) < MAX_LABEL_VALUES}


def says_ends(keys: Iterable[str]) -> bool:
    """Returns whether arrays of these names say where episodes end."""
    return "episode_ends" in keys or {*_END_FLAGS} <= {*keys}


def count_steps(headers: Mapping[str, tuple[tuple[int, ...], str]]) -> int:
    """Returns the number of steps: the rows of the actions, or else of most arrays."""
    rows = {key: shape[0] for key, (shape, _) in headers.items() if shape}
    actions = [n for key, n in rows.items() if role(standard_name(key)) == "action"]
    return actions[0] if actions else max(rows.values(), key=lambda n: ([*rows.values()].count(n), n), default=0)


def padding_hint(path: Path, names: Iterable[str] = ()) -> str:
    """Returns how to read a file if its arrays look padded, and otherwise "". `names` are as in `open_padded`."""
    file = NpzArrays(path)
    return padded_hint({key: file.headers[key][0] for key in _step_arrays(file, names)}, _lists(file))


def episodes_hint(path: Path) -> str:
    """Returns how to read the episodes of a file without episode_ends, if they are padded or an array says where they
    end. Else ""."""
    try:
        file = NpzArrays(path)
        lists = _lists(file)
        if hint := padding_hint(path):
            return hint
    except UserError:  # reading the file reports what is damaged
        return ""
    rows = dict.fromkeys([count_steps(file.headers), *(shape[0] for shape, _ in file.headers.values() if shape)])
    return next(filter(None, (boundary_hint(lists, steps, "episode_ends") for steps in rows)), "")


def _check_flags(values: np.ndarray, where: str):
    """Raises UserError if a flag is neither 0 nor 1: 0.5 is neither a success nor a failure."""
    if not are_flags(values):
        at = np.argwhere(~((values == 0) | (values == 1)))[0]
        raise UserError(f"a flag must be 0 or 1, not {values[tuple(at)]}", where=f"{where}[{at[0]}]",
                        hint="correct it, or save it under another name if it is not a flag")


def rename_hint(keys: Iterable[str]) -> str:
    """Returns a hint to rename arrays that have nearly a known name. Empty if there are none."""
    keys, right = sorted(keys), (*KEYS.columns, "episode_ends", "next_observations")
    missing = [name for name in right if name not in keys]
    renames = {key: _OTHERS.get(key) or next(iter(nearest_names(key, missing, cutoff=0.8)), None)
               for key in keys if key not in (*right, *EPISODE_COLUMNS)}
    renames = {key: name for key, name in renames.items() if name in missing}
    return f"save {', '.join(f'{key} as {name}' for key, name in renames.items())}" if renames else ""


# -- writing --------------------------------------------------------------------------------------------------------

_RESERVED_KEYS = {*KEYS.columns, "episode_ends", "next_observations", "fps"}
_PLAIN = {bool: "?", int: "<i8", float: "<f8", str: None}  # dtypes of metadata


def capability(data: Dataset) -> FormatCapability:
    """Returns which columns and metadata of a data set this format can store."""
    lengths, columns = data.lengths, {}
    for name, f in data.features().items():
        is_free = name in KEYS.columns.values() or name not in _RESERVED_KEYS and is_storable_key(name)
        if not f.size or not is_free or not is_plain_flag(data, name):
            continue
        shape = () if name.startswith("next.") and f.shape == (1,) else f.shape
        last = role(name) != "action" and bool((data.rows(name) > lengths).all())
        columns[name] = ColumnEncoding(name, "bool" if name in FLAG_COLUMNS[:2] else f.dtype, shape, last)
    return FormatCapability(columns, fps=True, metadata_keys=frozenset(_metadata_arrays(data, columns)))


def _metadata_arrays(data: Dataset, columns) -> dict[str, np.ndarray]:
    """Returns metadata that all episodes have, of one type each, as arrays.

    If there are as many steps as episodes, there are none: they would be read as columns.
    """
    if len(data) == data.steps:
        return {}
    out = {key: np.array(values, _PLAIN[type(values[0])]) for key, values in sidecar.plain_metadata(data).items()
           if key not in _RESERVED_KEYS and key not in columns and is_storable_key(key)}
    return {k: v for k, v in out.items() if v.tolist() == [e.metadata[k] for e in data]}


def write(data: Dataset, path: str | Path) -> None:
    """Writes an .npz file, which `NpzSource` reads."""
    path, kept = Path(path), capability(data)
    if not any(role(name) == "observation" for name in kept.columns):
        raise UserError(f"there is no column of observation; there are {', '.join(data.features())}", where=path,
                        hint="an .npz holds observations: choose another format")
    lengths = data.lengths
    arrays = [whole_array("episode_ends", np.cumsum(lengths))]
    for name, place in kept.columns.items():
        arrays.append(column_array(data, name, KEYS.key(name), lengths + place.has_last_row))
    arrays += [whole_array(key, values) for key, values in _metadata_arrays(data, kept.columns).items()]
    if data.fps is not None:
        arrays.append(whole_array("fps", np.asarray(np.float64(data.fps))))
    with sidecar.new_file_with_sidecar(path, data, kept) as part:
        write_npz(part, arrays)

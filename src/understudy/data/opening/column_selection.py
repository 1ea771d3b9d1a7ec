"""Opens data sets with other column names: the user says which columns are the state, the action, and so on.

`open_columns` opens any format, and selects and stacks columns. CSV and .npz files are opened whatever the names of
their columns are.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...core import ConfigError, DataError, Feature, UserError, role, short_name, suggested_names
from ...hints import columns_option, command_line, did_you_mean, nearest_names
from ..episode import ColumnSource, Dataset, EpisodeList
from ..formats import format_of, open_dataset, remote, robomimic
from ..formats.detection import UnknownFormat, detect_format
from ..formats.folder import NpzFolderSource, not_seconds, open_csv
from ..formats.hdf5_arrays import array_names, open_arrays
from ..formats.npz import NpzSource, episodes_hint, open_padded, padding_hint, says_ends
from ..formats.parts import hdf5, sidecar
from ..formats.parts.column_names import format_list, standard_name
from ..formats.parts.episode_table import EPISODE_COLUMNS, boundary_hint, cut_table, frame_rate
from ..formats.parts.file_kinds import episode_files
from ..formats.parts.links import check_links
from ..formats.parts.npz_arrays import NpzArrays
from ..formats.parts.reader_warnings import LineOfNamesWarning, MisreadingWarning, NoActionWarning, without_arrays
from ..packed_columns import cast_exactly, common_dtype
from ..sources import WrapperSource

_OPTION = "--columns (in Python: columns=)"
_BOUNDARIES = ("episode", "episode_lengths")  # which say where episodes end
_READINGS = ("classes", "quantities")
_EPISODE_FIELDS = {"task": "task", "next.success": "success"}  # columns that metadata may stand for
_NUMERIC_COLUMNS = ("observation.state", "action", "next.reward", "timestamp")
_CLOCKS = ("t", "time", "times", "timestamp", "step", "index", "frame")  # names that other columns come before
_ROUND = "give the column another name, or add :quantities, which rounds it"
Selection = Mapping[str, Sequence[str]]


def parse_columns(columns: Mapping[str, str | Sequence[str]] | Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Parses the arguments of ``--columns``, such as "state=q1,q2": the parts of each new column by its name.

    Args:
        columns: One text for each new column: its name, "=", and the columns that it is made of; or a mapping from its
            name to these columns. "state" stands for
            `observation.state`, "reward" for `next.reward`, and an unknown NAME for `observation.NAME`. A last column
            that ends in ":classes" or ":quantities" says what the whole numbers of the new column are.

            "episode" names the column that tells episodes apart. "episode_lengths" names an array of their numbers of
            steps, or of the step after the last of each ("episode_ends" is the same).
    """
    selection: dict[str, tuple[str, ...]] = {}
    texts = columns
    if isinstance(columns, str):
        texts = [columns]
    elif isinstance(columns, Mapping):
        for name, parts in columns.items():
            if not isinstance(parts, (str, list, tuple)) or not all(isinstance(part, str) for part in parts):
                raise ConfigError(f"{name!r} is made of {parts!r}, but must be made of names of columns", where=_OPTION,
                                  hint=f"such as {columns_option('state=q1,q2', 'action=u1,u2')}")
        texts = [f"{name}={parts if isinstance(parts, str) else ','.join(parts)}" for name, parts in columns.items()]
    for text in texts:
        name, equals, parts_text = text.partition("=")
        name, parts = name.strip(), tuple(part.strip() for part in parts_text.split(","))
        if not (name and equals and all(parts)):
            raise ConfigError(f"{text!r} does not say which columns to read", where=_OPTION,
                              hint=f"such as {columns_option('state=q1,q2', 'action=u1,u2')}")
        name = "episode_lengths" if name == "episode_ends" else name  # the values tell which they are
        if name not in _BOUNDARIES and (suggestions := nearest_names(name, _BOUNDARIES, cutoff=0.85)):
            raise ConfigError(f"{text!r} would make the observation {name!r}", where=_OPTION,
                              hint=f"did you mean {suggestions[0]}=? For the observation: observation.{name}="
                                   + parts_text)
        name = name if name in _BOUNDARIES else standard_name(name, others="observation.")
        if name in selection:
            raise ConfigError(f"{name} is given twice", where=_OPTION, hint="name all of its columns once")
        selection[name] = parts
    return selection


def open_columns(path: str | Path, columns: Selection | None = None, *,
                 open: Callable[..., Dataset] = open_dataset, **options) -> Dataset:
    """Opens a data set, and selects and renames its columns as the user says (`--columns`).

    Args:
        columns: For each new column, the columns that it is made of, concatenated in order (see `parse_columns`). Other
            columns stay as they are. By default nothing is selected.
        open: `open_dataset` or `preview_dataset`.

    Example:
        >>> data = open_columns("runs.csv", {"observation.state": ("q1", "q2"), "action": ("u1", "u2")})
    """
    selection = dict(columns or {})
    boundary = {name: parts for name in _BOUNDARIES if (parts := selection.pop(name, None)) is not None}
    if sum(map(len, boundary.values())) > 1:
        raise ConfigError("one column tells episodes apart, not several", where=_OPTION,
                          hint="name one, with episode= or episode_lengths=")
    named = {name: parts[0] for name, parts in boundary.items()}
    local = Path(remote.local_path(path))
    needed = [_split_reading(parts)[0] for name, parts in selection.items() if name not in _EPISODE_FIELDS]
    data = _open_plain(local, named, needed) if columns else None
    if data is None and named:
        raise ConfigError(f"{format_of(local)} data say themselves where their episodes end",
                          where=f"{_OPTION}, {next(iter(named))}=", hint="leave it out")
    try:
        data = open(path, **options) if data is None else data
    except UnknownFormat as error:
        if (names := _unknown_names(local)) is None:
            raise
        hint = (f"say what they are: {columns_option('state=A,B', 'action=C,D')} with these names, and where episodes "
                "end: episode=E, a column that numbers them, or episode_lengths=L, an array"
                + (f". {episodes}" if (episodes := _episodes_hint(local)) else ""))
        if "actions_0" in names and episode_files(local, "hdf5"):
            hint = "if it is a ReplayBuffer of d3rlpy, save its episodes as docs/other-libraries.md shows"
        raise DataError(f"no column has a name that policies read; there are {names}", where=path,
                        hint=hint) from error
    except UserError as error:  # in the layout of its format, which does not matter where the user names the arrays
        with suppress(UserError):
            data = _open_plain(local, named, needed, override=True) if any(needed) else None
        if data is None:
            raise
        doubt = MisreadingWarning(f"read by the named arrays alone, because of an error in its format: {error.problem}")
        data = Dataset(data.source, {**data.metadata, "warnings": [*data.metadata["warnings"], doubt]})
    reading: dict[str, Any] = {name: value for name, value in options.items() if isinstance(value, (int, str))}
    if columns:
        reading["columns"] = {name: list(parts) for name, parts in columns.items()}
    if reading:  # a run keeps it, so that other data are read alike
        data = Dataset(data.source, {**data.metadata, "reading": reading}, data.indices)
    if not selection:
        return data
    if isinstance(data.source, EpisodeList):
        raise DataError("columns of this format cannot be selected", where=path, hint="leave out columns")
    source = SelectedColumns(data.source, selection, str(path))
    warnings = [w for w in without_arrays(data.metadata.get("warnings", ()), source.keys_with_reading())
                if not isinstance(w, NoActionWarning)]
    fps = data.fps or (_rate(source) if "timestamp" in selection else None)
    return Dataset(source, {**data.metadata, "warnings": warnings, "fps": fps}, data.indices)


def open_as_read(path: str | Path, overrides: Mapping[str, Any], stored: Mapping[str, Any]) -> tuple[Dataset, bool]:
    """Opens a data set with the same options as other data if it can be read so. Says whether they were used.

    Args:
        overrides: Options of `open_columns` that the user gave. They win over stored options.
        stored: The options with which other data were read.
    """
    options = {name: value for name, value in overrides.items() if value}
    extra = {name: value for name, value in stored.items() if name not in options}
    if not extra:
        return open_columns(path, **options), False
    try:
        return open_columns(path, **options, **extra), True
    except UserError as error:  # perhaps its columns have the names of policies
        try:
            data = open_columns(path, **options)
        except UserError:
            data = None
        if data is None or "action" not in data.features():
            if "columns" not in extra or not Path(path).exists():
                raise error from None
            raise DataError(error.problem, where=error.where, hint=f"{error.hint or 'check the data'}. It was read as "
                            f"the data of the run were: --columns {describe_columns(extra['columns'])}. If its columns "
                            "differ, add --columns that fit it") from None
        return data, False


def describe_columns(columns: Selection) -> str:
    """Returns a selection as the arguments of ``--columns``."""
    return " ".join(_column_texts(columns))


def column_options(data: Dataset) -> list[str]:
    """Returns the option --columns with which a data set was opened. Empty if it was opened without."""
    columns = data.metadata.get("reading", {}).get("columns", {})
    return ["--columns", *_column_texts(columns)] if columns else []


def missing_column_hint(missing: str, data: Dataset) -> str:
    """Returns how to get a column that a learner reads, such as next.reward, from a column with another name."""
    features, selected, path = data.features(), column_options(data), data.metadata.get("path", "DATA")
    of_ends = missing == "next.terminated"

    def renaming(name: str) -> str:
        if selected:  # a view cannot open the data
            return f"name it: {shlex.join([*selected, f'{short_name(missing)}={name}'])}"
        return "a view renames it: " + command_line("view", "make", path, "--out", "VIEW", "--rename",
                                                    f"{name}={missing}")

    for name, new in suggested_names(features).items():
        if new == missing:
            return f"if {name!r} is that column, {renaming(name)}"
    ends = "It is True where the environment ended the episode, and False at a time limit. " if of_ends else ""
    if of_ends and not selected:
        ends += ("Where it ended all episodes (or none), a view says so: "
                 + command_line("view", "make", path, "--out", "VIEW", "--label", "terminated=true") + " (or false). ")
    numbers = [name for name, f in features.items() if role(name) == "other" and f.kind != "string" and f.size == 1
               and not name.startswith("simulator.") and not (of_ends and f.dtype.startswith("float"))]
    if numbers:
        numbers.sort(key=lambda name: name.lower() in _CLOCKS)
        ends += f"If a column has it under another name ({', '.join(numbers[:5])}), {renaming(numbers[0])}. "
    return ("add it to the data, or choose a method that does not read it (understudy methods). " + ends +
            "understudy record writes next.reward and next.terminated"
            + ("; in an .npz they are rewards and terminals" if str(path).endswith(".npz") else ""))


def _column_texts(columns: Selection) -> list[str]:
    return [f"{short_name(name)}={','.join(parts)}" for name, parts in columns.items()]


def _split_reading(parts: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Splits off how whole numbers are read: "classes", "quantities", or "" if the user does not say."""
    last, colon, reading = parts[-1].rpartition(":")
    if colon and reading in _READINGS:
        return (*parts[:-1], last.strip()), reading
    return tuple(parts), ""


def _rate(source: ColumnSource) -> float | None:
    """Returns the steps per second from the column timestamp, if its times are evenly spaced."""
    if source.schema["timestamp"].kind == "string":
        return None
    return frame_rate([np.asarray(source.column("timestamp", e), float) for e in range(len(source.lengths))])


class SelectedColumns(WrapperSource):
    """Wraps a source so that some columns are concatenations of other columns.

    Args:
        selection: For each new column the columns or components that it is made of. A component is written NAME_0 or
            NAME[0], or by its own name. For the task and the success, metadata of the episodes will do.
    """

    def __init__(self, inner: ColumnSource, selection: Selection, where: str):
        super().__init__(inner, {name: list(parts) for name, parts in selection.items()})
        self._parts, self._reading, self._where = {}, {}, where
        metadata = inner.episode_metadata(0) if len(inner.lengths) else {}
        self._fields = {_EPISODE_FIELDS[name]: parts[0] for name, parts in selection.items() if name in _EPISODE_FIELDS
                        and len(parts) == 1 and parts[0] in metadata and parts[0] not in inner.schema}
        selection = {name: parts for name, parts in selection.items() if _EPISODE_FIELDS.get(name) not in self._fields}
        for name, parts in selection.items():
            columns, self._reading[name] = _split_reading(parts)
            self._parts[name] = [_find_part(part, inner, where) for part in columns]
        used = {column for parts in self._parts.values() for column, _ in parts}
        self.schema = {**{name: f for name, f in inner.schema.items() if name not in used | set(selection)},
                       **{name: self._feature(name, where) for name in selection}}

    def keys_with_reading(self) -> list[str]:
        """The arrays of the file that the user called classes or quantities."""
        keys = _array_keys(self.inner)
        return [keys.get(column, column) for name, parts in self._parts.items() if self._reading[name]
                for column, _ in parts]

    def _feature(self, name: str, where: str) -> Feature:
        f = self._stacked_feature(name, where)
        if self._reading[name] == "classes":
            self._check_classes(name, f, where)
            return replace(f, dtype="int64", kind="discrete")
        return replace(f, dtype="float64", kind="vector") if self._reading[name] else f

    def _stacked_feature(self, name: str, where: str) -> Feature:
        features = [self.inner.schema[column] for column, _ in self._parts[name]]
        if not self._is_whole(name) or name in _NUMERIC_COLUMNS or self._reading[name]:
            for (column, _), f in zip(self._parts[name], features, strict=True):
                if f.kind == "string":
                    self._check_numbers(name, column, where)
        non_numeric = [column for (column, _), f in zip(self._parts[name], features, strict=True)
                       if f.kind in ("image", "string")]
        if non_numeric and self._reading[name]:
            raise DataError(f"{non_numeric[0]} is not numeric, and has no {self._reading[name]}", where=where,
                            hint=f"leave out :{self._reading[name]}, or number the classes from 0")
        if name.startswith("observation.images.") and not (self._is_whole(name)
                                                           and features[0].kind in ("image", "depth")):
            f, column = features[0], self._parts[name][0][0]
            raise DataError(f"{column} is not an image, but a {f.kind} of {f.dtype} of shape {f.shape}",
                            where=f"{where}, {name}",
                            hint="images are uint8 of shape (height, width, 3), or JPEG or PNG files; other "
                                 f"observations are {columns_option(f'NAME={column}')}")
        if self._is_whole(name):
            return features[0]
        if non_numeric:
            raise DataError(f"{non_numeric[0]} is not numeric, and {name} is made of several columns", where=where,
                            hint="give images and texts a column of their own")
        names = tuple(n for part in self._parts[name] for n in self._component_names(*part))
        dtype = common_dtype(f.dtype for f in features)
        kind = Feature.from_array(np.empty((0, len(names)), dtype)).kind
        return Feature(dtype.name, (len(names),), "vector" if kind == "text" else kind, names)

    def _check_classes(self, name: str, f: Feature, where: str) -> None:
        """Raises DataError for the first value that is not the number of a class."""
        for episode in range(len(self.lengths)):
            values = np.asarray(self._stack(name, episode), np.float64).reshape(-1, max(f.size, 1))
            if (is_invalid := ~((values >= 0) & (values == np.round(values)))).any():
                step, component = np.argwhere(is_invalid)[0]
                is_unknown = name == "action" and np.isnan(values[step, component])
                raise DataError(f"{values[step, component]:g} is not a class: classes are whole numbers from 0",
                                where=f"{where}, {name}, episode {episode}, step {step}",
                                hint="leave out :classes if these are quantities" + (
                                    "; put episodes without actions into data of their own, without this column, and "
                                    "name them with --prior, for vpt" if is_unknown else ""))

    def _check_numbers(self, name: str, column: str, where: str) -> None:
        """Raises DataError for the first cell of text in a column that is mostly numbers, or must be numbers."""
        texts, numbers = {}, 0  # (episode, step) -> text
        for episode in range(len(self.lengths)):
            for step, cell in enumerate(np.asarray(self.inner.column(column, episode)).reshape(-1).tolist()):
                try:
                    float(cell)
                    numbers += 1
                except ValueError:
                    texts[episode, step] = cell
        if texts and name == "timestamp" and not numbers:
            raise not_seconds(next(iter(texts.values())), f"{where}, {column}")
        if texts and (numbers > len(texts) or name in _NUMERIC_COLUMNS):
            (episode, step), cell = next(iter(texts.items()))
            others = f", and {len(texts) - 1} others like it" if len(texts) > 1 else ""
            hint = f"correct the cell{others}" if numbers else "write numbers; classes are numbered from 0"
            raise DataError(f"this is not a number: {cell!r}", hint=hint,
                            where=f"{where}, {column}, episode {episode}, step {step}")

    def _component_names(self, column: str, index: int | None) -> list[str]:
        f = self.inner.schema[column]
        names = [column] if not f.shape else list(f.names or (f"{column}_{i}" for i in range(f.size)))
        return names if index is None else [names[index]]

    def episode_metadata(self, episode):
        metadata = self.inner.episode_metadata(episode)
        return {**metadata, **{field: metadata[name] for field, name in self._fields.items() if name in metadata}}

    def _is_whole(self, name: str) -> bool:
        return len(self._parts[name]) == 1 and self._parts[name][0][1] is None

    def rows(self, name):
        if name not in self._parts:
            return self.inner.rows(name)
        return np.min([self.inner.rows(column) for column, _ in self._parts[name]], axis=0)

    def column(self, name, episode):
        if name not in self._parts:
            return self.inner.column(name, episode)
        values = self._stack(name, episode)
        return values.astype(self.schema[name].dtype) if self._reading[name] else values

    def _stack(self, name, episode) -> np.ndarray:
        columns = [self.inner.column(column, episode) for column, _ in self._parts[name]]
        if self._is_whole(name):
            return columns[0]
        rows = min(map(len, columns))
        flat = [np.asarray(c[:rows]).reshape(rows, -1) for c in columns]
        some = [c if i is None else c[:, i:i + 1] for c, (_, i) in zip(flat, self._parts[name], strict=True)]
        dtype = common_dtype(c.dtype for c in some)
        if not self._reading[name]:  # quantities may be rounded
            location = f"{self._where}, {name}, episode {episode}"
            some = [cast_exactly(c, dtype, location, "its other columns", _ROUND) for c in some]
        return np.concatenate(some, 1, dtype=dtype)

    def frames(self, name, episode):
        return self.inner.frames(self._parts[name][0][0] if name in self._parts else name, episode)

    def packed_column(self, name):
        if name not in self._parts:
            return self.inner.packed_column(name)
        same = self._is_whole(name) and not self._reading[name]
        return self.inner.packed_column(self._parts[name][0][0]) if same else self.gather_rows(name)


def _find_part(part: str, source: ColumnSource, where: str) -> tuple[str, int | None]:
    """Finds what a name of the user means: a column, or a column and the number of a component."""
    vectors = {name: f for name, f in source.schema.items() if f.shape and f.kind in ("vector", "discrete")}
    own = [(n, (name, i)) for name, f in vectors.items() for i, n in enumerate(f.names or ())]
    names: dict[str, tuple[str, int | None]] = {name: (name, None) for name in source.schema}
    names = {**{n: at for n, at in own if [n for n, _ in own].count(n) == 1}, **names}
    for name, f in vectors.items():
        names |= {n: (name, i) for i in range(f.size) for n in (f"{name}_{i}", f"{name}[{i}]") if n not in names}
    prefixes = ("observation.", "observation.images.")
    keys = {key: (name, None) for name, key in _array_keys(source).items() if name in source.schema}
    names = {**keys, **names}
    for text in (part, part.replace("/", "."), standard_name(part), *(prefix + part for prefix in prefixes)):
        if text in names:  # the column may have its name in the file
            return names[text]
    raise DataError(f"there is no column {part!r} among {format_list(source.schema, 20)}", where=where,
                    hint=(did_you_mean(part.partition(":")[0], names)
                          or f"name one of these: {columns_option('NAME=COLUMN')}")
                    + (" :classes and :quantities may follow the last column" if ":" in part else ""))


def _array_keys(source: ColumnSource) -> Mapping[str, str]:
    """Returns the name of each column in the file, if the format tells it."""
    return getattr(source.inner if isinstance(source, sidecar.SidecarSource) else source, "keys", {})


# -- tables of plain names ---------------------------------------------------------------------------------------------


class _PlainNpzSource(NpzSource):
    """Reader of an .npz file with episode_ends, whatever its arrays are called."""

    def _check_names(self):
        pass

    def _check_last(self, end):
        pass


def _unknown_names(path: Path) -> str | None:
    """Returns the columns of a file in no known format, for the user to name. None if they need no names."""
    notes: list[str] = []
    try:
        if episode_files(path, "hdf5"):
            names = array_names(path)
        elif path.is_file() and episode_files(path, "npz"):
            names = list(NpzArrays(path).headers)
        elif (data := _open_plain(path, {}, [])) is None:
            return None
        else:
            names = list(data.features())
            notes = [w for w in data.metadata["warnings"] if isinstance(w, LineOfNamesWarning)]
    except UserError:
        return None
    roles = {role(standard_name(name)) for name in names}
    return None if {"observation", "action"} <= roles else ": ".join([format_list(names, 20), *notes])


def _episodes_hint(path: Path) -> str:
    return episodes_hint(path) if path.is_file() and episode_files(path, "npz") else ""


def _open_plain(path: Path, boundary: Mapping[str, str], selected: Sequence[Sequence[str]],
                override: bool = False) -> Dataset | None:
    """Opens CSV, .npz and HDF5 files or folders with arbitrary column names. Returns None for other formats.

    Args:
        override: Whether files of these kinds are also opened if they are in a known format.
    """
    try:
        path, kind = detect_format(path)
    except UserError:  # with other names it may still be read
        kind = ""
    if override or boundary or kind == "robomimic" and not _has_actions(path):
        kind = ""
    if kind not in ("", "npz", "npz-folder", "csv") or not path.exists():
        return None
    check_links(path)
    tables, arrays = episode_files(path, "csv"), episode_files(path, "npz")
    named = [name for parts in selected for name in parts]
    if boundary and path.is_dir() and (tables or arrays):
        raise ConfigError(f"each of the {len(tables or arrays)} files is an episode",
                          where=f"{_OPTION}, {next(iter(boundary))}=", hint="leave it out, or name a single file")
    if tables and "episode_lengths" in boundary:
        raise ConfigError("a table has no array of lengths", where=f"{_OPTION}, episode_lengths=",
                          hint=f"name the column that numbers the episodes: {columns_option('episode=COLUMN')}")
    if tables:
        return open_csv(path, **boundary)
    if arrays:
        return Dataset(NpzFolderSource(path, named)) if path.is_dir() else _open_npz(path, boundary, named)
    return open_arrays(path, named, **boundary) if episode_files(path, "hdf5") else None


def _has_actions(path: Path) -> bool:
    with hdf5.OpenFiles() as files, hdf5.hdf5_errors(path):
        return robomimic.has_actions(files[path]["data"])


def _open_npz(path: Path, boundary: Mapping[str, str], named: Sequence[str]) -> Dataset:
    headers = NpzArrays(path).headers
    if not boundary and not says_ends(headers):
        if hint := padding_hint(path, named):
            raise DataError("nothing says where its episodes end", where=path, hint=hint)
        numbers = next((name for name in EPISODE_COLUMNS if name in headers), None)
        boundary = {} if numbers is None else {"episode": numbers}
    if (lengths := boundary.get("episode_lengths")) and (padded := open_padded(path, named, lengths)) is not None:
        return padded
    if boundary or says_ends(headers):
        return Dataset(_PlainNpzSource(path, **boundary))
    try:
        source = NpzFolderSource(path, named)
        lists = {name: np.asarray(values) for name, values in source.episode_metadata(0).items()
                 if isinstance(values, list)}
        lists = {name: values for name, values in lists.items() if values.ndim == 1 and values.dtype.kind in "iuf"}
        if hint := boundary_hint(lists, int(source.lengths[0]), "episode_ends"):
            raise DataError("nothing says where its episodes end", where=path, hint=hint)
        return cut_table(source, path)
    except DataError:
        raise
    except UserError:  # an array has a row for each episode, perhaps
        if not (hint := episodes_hint(path)):
            raise
        raise DataError("nothing says where its episodes end", where=path, hint=hint) from None

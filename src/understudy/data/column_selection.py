"""Data sets whose columns have other names: the user says which columns are the state, the action, and so on.

`open_columns` opens any format, and selects and stacks columns. CSV and .npz files are opened whatever the names of
their columns are.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..core import ConfigError, DataError, Feature, UserError
from .episode import ColumnSource, Dataset, EpisodeList
from .formats import open_dataset, remote
from .formats.column_names import format_list, standard_name
from .formats.detection import UnknownFormat
from .formats.episode_table import even_rate
from .formats.folder import NpzFolderSource, episode_files, open_csv
from .formats.npz import NpzSource
from .formats.npz_arrays import NpzArrays
from .sources import WrapperSource

_NUMERIC_COLUMNS = ("observation.state", "action", "next.reward", "timestamp")
Selection = Mapping[str, tuple[str, ...]]


def parse_columns(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Parse the arguments of ``--columns``, such as "state=q1,q2".

    Args:
        texts: One text for each new column: its name, "=", and the columns that it is made of. "state" stands for
            `observation.state`, "reward" for `next.reward`, and an unknown NAME for `observation.NAME`. "episode" names
            the column that tells episodes apart in a single table.

    Returns:
        The columns that each new column is made of, by its name.

    Raises:
        ConfigError: A text does not have this form, or a name is given twice.
    """
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, equals, columns = text.partition("=")
        name, parts = name.strip(), tuple(part.strip() for part in columns.split(","))
        if not (name and equals and all(parts)):
            raise ConfigError(f"{text!r} does not say which columns to read", where="--columns",
                              hint="such as --columns state=q1,q2 action=u1,u2")
        name = name if name == "episode" else standard_name(name, others="observation.")
        if name in found:
            raise ConfigError(f"{name} is given twice", where="--columns", hint="name all of its columns once")
        found[name] = parts
    return found


def open_columns(path: str | Path, columns: Selection | None = None, *,
                 open: Callable[..., Dataset] = open_dataset, **options) -> Dataset:
    """Open a data set and select its columns.

    Args:
        path: A file or folder of demonstrations.
        columns: For each new column, the columns that it is made of, concatenated in order (see `parse_columns`). Other
            columns stay as they are. By default nothing is selected.
        open: `open_dataset` or `preview_dataset`.
        **options: Options of the format.

    Returns:
        The data set.

    Raises:
        UserError: It cannot be opened, or there is no such column.

    Example:
        >>> data = open_columns("runs.csv", {"observation.state": ("q1", "q2"), "action": ("u1", "u2")})
    """
    selection = dict(columns or {})
    by = selection.pop("episode", None)
    if by is not None and len(by) != 1:
        raise ConfigError(f"one column tells episodes apart, not {len(by)}", where="--columns episode=",
                          hint="name one column")
    options |= {} if by is None else {"episode": by[0]}
    data = _open_plain(Path(remote.local_path(path)), by and by[0]) if selection else None
    try:
        data = open(path, **options) if data is None else data
    except UserError as error:
        if (names := _unknown_names(path, error)) is None:
            raise
        raise DataError(f"no column has a name that policies read; there are {names}", where=path,
                        hint="say what they are: --columns state=A,B action=C,D with these names") from error
    if not selection:
        return data
    if isinstance(data.source, EpisodeList):
        raise DataError("columns of this format cannot be selected", where=path, hint="leave out --columns")
    warnings = [w for w in data.metadata.get("warnings", ()) if not w.startswith("no column is called action")]
    source = SelectedColumns(data.source, selection, str(path))
    fps = data.fps or (_rate(source) if "timestamp" in selection else None)
    return Dataset(source, {**data.metadata, "warnings": warnings, "fps": fps}, data.indices)


def _rate(source: ColumnSource) -> float | None:
    """Steps per second from the column timestamp, if it has even numbers."""
    if source.schema["timestamp"].kind == "string":
        return None
    return even_rate([np.asarray(source.column("timestamp", e), float) for e in range(len(source.lengths))])


class SelectedColumns(WrapperSource):
    """Another source in which some columns are concatenations of others.

    Args:
        inner: The other source.
        selection: For each new column the columns or components that it is made of. A component is written NAME_0 or
            NAME[0], or by its own name.
        where: The data set, for error messages.
    """

    def __init__(self, inner: ColumnSource, selection: Selection, where: str):
        super().__init__(inner, {name: list(parts) for name, parts in selection.items()})
        self._parts = {name: [_find_part(part, inner, where) for part in parts] for name, parts in selection.items()}
        used = {column for parts in self._parts.values() for column, _ in parts}
        self.schema = {**{name: f for name, f in inner.schema.items() if name not in used | set(selection)},
                       **{name: self._feature(name, where) for name in selection}}

    def _feature(self, name: str, where: str) -> Feature:
        found = [self.inner.schema[column] for column, _ in self._parts[name]]
        if not self._is_renamed(name) or name in _NUMERIC_COLUMNS:
            for (column, _), f in zip(self._parts[name], found, strict=True):
                if f.kind == "string":
                    self._check_numbers(column, where)
        if self._is_renamed(name):
            return found[0]
        if odd := [c for (c, _), f in zip(self._parts[name], found, strict=True) if f.kind in ("image", "string")]:
            raise DataError(f"{odd[0]} is not numeric, and {name} is made of several columns", where=where,
                            hint="give images and texts a column of their own")
        names = tuple(n for part in self._parts[name] for n in self._component_names(*part))
        dtype = np.result_type(*(f.dtype for f in found))
        kind = Feature.from_array(np.empty((0, len(names)), dtype)).kind
        return Feature(dtype.name, (len(names),), "vector" if kind == "text" else kind, names)

    def _check_numbers(self, column: str, where: str) -> None:
        """Raises DataError for the first cell of text in a column that is mostly numbers."""
        texts, numbers = {}, 0  # (episode, step) -> text
        for episode in range(len(self.lengths)):
            for step, cell in enumerate(np.asarray(self.inner.column(column, episode)).reshape(-1).tolist()):
                try:
                    float(cell)
                    numbers += 1
                except ValueError:
                    texts[episode, step] = cell
        if numbers > len(texts) > 0:
            (episode, step), cell = next(iter(texts.items()))
            others = f", and {len(texts) - 1} others like it" if len(texts) > 1 else ""
            raise DataError(f"this is not a number: {cell!r}", hint=f"correct the cell{others}",
                            where=f"{where}, {column}, episode {episode}, step {step}")

    def _component_names(self, column: str, index: int | None) -> list[str]:
        f = self.inner.schema[column]
        names = [column] if not f.shape else list(f.names or (f"{column}_{i}" for i in range(f.size)))
        return names if index is None else [names[index]]

    def _is_renamed(self, name: str) -> bool:
        return len(self._parts[name]) == 1 and self._parts[name][0][1] is None

    def rows(self, name):
        if name not in self._parts:
            return self.inner.rows(name)
        return np.min([self.inner.rows(column) for column, _ in self._parts[name]], axis=0)

    def column(self, name, episode):
        if name not in self._parts:
            return self.inner.column(name, episode)
        found = [self.inner.column(column, episode) for column, _ in self._parts[name]]
        if self._is_renamed(name):
            return found[0]
        rows = min(map(len, found))
        flat = [np.asarray(c[:rows]).reshape(rows, -1) for c in found]
        some = [c if i is None else c[:, i:i + 1] for c, (_, i) in zip(flat, self._parts[name], strict=True)]
        return np.concatenate(some, 1).astype(self.schema[name].dtype)

    def frames(self, name, episode):
        return self.inner.frames(self._parts[name][0][0] if name in self._parts else name, episode)

    def packed_column(self, name):
        if name not in self._parts:
            return self.inner.packed_column(name)
        return self.inner.packed_column(self._parts[name][0][0]) if self._is_renamed(name) else self.gather_rows(name)


def _find_part(part: str, source: ColumnSource, where: str) -> tuple[str, int | None]:
    """(column, None), or (column, component)."""
    vectors = {name: f for name, f in source.schema.items() if f.shape and f.kind in ("vector", "discrete")}
    own = [(n, (name, i)) for name, f in vectors.items() for i, n in enumerate(f.names or ())]
    names: dict[str, tuple[str, int | None]] = {name: (name, None) for name in source.schema}
    names = {**{n: at for n, at in own if [n for n, _ in own].count(n) == 1}, **names}
    for name, f in vectors.items():
        names |= {n: (name, i) for i in range(f.size) for n in (f"{name}_{i}", f"{name}[{i}]") if n not in names}
    if part in names:
        return names[part]
    near = difflib.get_close_matches(part, names, 1)
    raise DataError(f"there is no column {part!r} among {format_list(source.schema, 20)}", where=where,
                    hint=f"did you mean {near[0]}?" if near else "name one of these after --columns NAME=")


# -- tables of plain names ---------------------------------------------------------------------------------------------


class _PlainNpzSource(NpzSource):
    """An .npz file with episode_ends, whatever its arrays are called."""

    def _check_names(self):
        pass

    def _check_last(self, end):
        pass


def _unknown_names(path: str | Path, error: UserError) -> str | None:
    """The columns of a CSV or .npz file that was refused for their names. None if it was refused for another reason."""
    if not isinstance(error, UnknownFormat):
        return None
    try:
        data = _open_plain(Path(remote.local_path(path)), None)
    except UserError:
        return None
    return None if data is None else format_list(data.features(), 20)


def _open_plain(path: Path, episode: str | None) -> Dataset | None:
    """A CSV or .npz file, or a folder of them, whatever the columns are called. None for all else."""
    if path.is_dir():
        tables, arrays = episode_files(path, ".csv"), episode_files(path, ".npz")
        return open_csv(path) if tables else Dataset(NpzFolderSource(path)) if arrays else None
    if path.suffix.lower() == ".csv" and path.is_file():
        return open_csv(path, episode)
    if path.suffix.lower() != ".npz" or not path.is_file():
        return None
    if "episode_ends" not in NpzArrays(path).headers:
        return Dataset(NpzFolderSource(path))
    return Dataset(_PlainNpzSource(path))

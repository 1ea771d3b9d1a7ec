"""Reader and writer of folders with one .npz or .csv file per episode, and an optional dataset.json.

Columns of a CSV are NAME, or NAME_0 to NAME_{n-1} for the n components of a vector, which may also be written NAME.0 or
NAME[0], or start at 1. Numbers are quantities, float64, whole or not. A `timestamp` is in seconds. `parts.text_table`
has what separates the columns, and what they are called without a line of names.

Cells of the last row may be empty: columns that have a value there have a row after the last action. Camera frames are
in <stem>/<camera>/*.png or .jpg. dataset.json is {"episodes": number of episodes, "fps", "robot_type", "features":
{column: {"dtype", "shape", "names", "unit"}}}.
"""

from __future__ import annotations

import csv
import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...core import DataError, Feature, UserError
from ...files import write_json
from .. import cache, video
from ..episode import Dataset
from ..sources import MemmapSource
from .parts import file_kinds, sidecar
from .parts.column_names import FLAG_COLUMNS, format_list, number_sort_key, standard_name, text_column
from .parts.episode_table import cut_table, frame_rate
from .parts.key_map import add_column, checked_rate, common_arrays, image_feature, is_metadata, metadata
from .parts.npz_arrays import NpzArrays
from .parts.read_errors import damaged, first_true, read_json_object
from .parts.reader_warnings import LineOfNamesWarning, MisreadingWarning, NoActionWarning
from .parts.sidecar import ColumnEncoding, FormatCapability
from .parts.text_table import CONTROL_CHARACTERS, MAX_CELL_BYTES, TextTable, read_table

DATASET_JSON = "dataset.json"
_INT = re.compile(r"[+-]?\d{1,19}")
_WORDS = {"true": 1, "false": 0}
_NUMBERED = re.compile(r"(.+?)_(\d+)")
_BRACKETED = re.compile(r"(.+?)(?:\.(\d+)|\[(\d+)\])")
_NUMBERS = {"bool": bool, "int": np.int64, "float": np.float64}  # each kind can represent the kinds before it
_EXACT = 2**53  # larger whole numbers, such as times in nanoseconds, are not exact in float64
_CAMERA = "observation.images."
_IMAGES, _VIDEOS = (".png", ".jpg", ".jpeg"), (".mp4", ".avi", ".mkv", ".mov", ".webm")


def open_csv(path: Path, episode: str | None = None) -> Dataset:
    """Opens a folder of one file per episode, or a single table whose column `episode` tells them apart (see
    `cut_table`)."""
    source = CsvFolderSource(path)
    return Dataset(source) if path.is_dir() else cut_table(source, path, episode)


def not_seconds(text: str, where: str) -> DataError:
    """Returns the error for a column of times that has text instead of seconds."""
    return DataError(f"the times are text, such as {str(text)!r}, and not numbers of seconds", where=where,
                     hint="write seconds, such as with pandas: t = pd.to_datetime(table[NAME]); table[NAME] = "
                          "(t - t[0]).dt.total_seconds(); or give the column a name other than timestamp")


class FolderSource(MemmapSource):
    """Reader of a folder with one file per episode, or of one file, which is an episode."""

    flags = frozenset(FLAG_COLUMNS)
    ending: str
    schema: dict[str, Feature]
    metadata: dict[str, Any]

    def __init__(self, path: Path):
        self.path = path
        self.folder = path if path.is_dir() else path.parent
        self.files = file_kinds.episode_files(path, self.ending[1:]) if path.is_dir() else [path]
        self._dataset_json = self._read_about()
        about = [self.folder / DATASET_JSON] if self._dataset_json else []
        self.key = cache.files_digest([*self.files, *about], self.ending)
        self.schema, self.row_counts, self._episode_metadata = {}, {}, []
        robot_type = self._dataset_json.get("robot_type")
        self.metadata = metadata(self.ending[1:], path, [], fps=self._fps(), robot_type=robot_type)
        self._check_files()
        self._scan_files()
        self.lengths = np.min(list(self.row_counts.values()), axis=0)
        if "timestamp" in self.schema and self.schema["timestamp"].kind == "string":
            text = np.asarray(self.read_text("timestamp", 0)).reshape(-1)[0]
            raise not_seconds(text, f"{self.files[0]}, timestamp")
        for name, rows in self.row_counts.items():
            if (e := first_true(rows > self.lengths + 1)) is not None:
                raise UserError(f"it has {rows[e]} rows instead of {self.lengths[e]}, or one more",
                                where=f"{self.files[e]}, {name}", hint="correct the file, or leave it out")
        if not any(n.split(".")[0] == "action" for n in self.schema):
            self.metadata["warnings"].append(NoActionWarning(
                f"no column is called action; there are {format_list(self.schema, 12)}"))

    @abstractmethod
    def _scan_files(self) -> None:
        """Fills `schema`, `row_counts` and `_episode_metadata` without keeping any values."""

    def location(self, name, episode):
        return f"{self.files[episode]}, {name}"

    def episode_metadata(self, episode):
        return self._episode_metadata[episode]

    def _check_files(self):
        """Checks the numbers in file names, and dataset.json, for missing files."""
        n_declared, numbers = self._dataset_json.get("episodes"), [number_sort_key(p.stem)[0] for p in self.files]
        if self.path.is_dir() and n_declared is not None and n_declared != len(self.files):
            raise UserError(f"there are {len(self.files)} files, but {DATASET_JSON} says {n_declared} episodes",
                            where=self.path, hint="take what is missing from a copy, or correct dataset.json")
        files = self.path.iterdir() if self.path.is_dir() else ()
        if videos := sorted(p.name for p in files if p.suffix.lower() in _VIDEOS):
            self.metadata["warnings"].append(MisreadingWarning(
                f"the videos are not read: {format_list(videos, 3)}. Frames are read from "
                f"{self.files[0].stem}/CAMERA/*.png or .jpg"))
        if len(set(numbers)) == len(numbers) and numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            gap = next(i for i, n in enumerate(numbers) if n != numbers[0] + i)
            self.metadata["warnings"].append(f"{self.files[gap].name} follows {self.files[gap - 1].name}: "
                                             f"is a file missing between them?")

    def _alike(self, columns_of_files, alike):
        """Returns the columns of the files. Raises an error if a file has other columns than the first."""
        if not columns_of_files[0]:
            raise damaged("there are no arrays with a row for each step", self.files[0])
        return common_arrays(columns_of_files, alike, lambda e, name: f"{self.files[e]}, {name}")

    def _read_about(self) -> dict[str, Any]:
        file = self.folder / DATASET_JSON
        about = read_json_object(file) if file.exists() else {}
        if not isinstance(about.get("features", {}), dict):
            raise damaged("this is not an object with fps, robot_type and features", file)
        return about

    def _fps(self) -> float | None:
        fps = self._dataset_json.get("fps")
        return None if fps is None else checked_rate(fps, f"{self.folder / DATASET_JSON}, fps")

    def _declared_feature(self, name: str) -> Feature | None:
        """Returns the feature of a column that dataset.json declares."""
        declaration = self._dataset_json.get("features", {}).get(name)
        if declaration is None:
            return None
        try:
            feature = Feature.from_json(declaration)
            if feature.dtype != "string":
                np.dtype(feature.dtype)
            if not all(isinstance(n, int) and n > 0 for n in feature.shape):
                raise ValueError(f"shape {feature.shape}")
        except (TypeError, ValueError, AttributeError) as error:
            raise damaged(f"this is not the dtype and shape of a column ({error})",
                          f"{self.folder / DATASET_JSON}, {name}") from None
        return feature


class NpzFolderSource(FolderSource):
    """Files of arrays with T rows, or one more. A single text is the task of the episode. Other single values are
    metadata, and so are small arrays of other lengths where the steps are known.

    Args:
        named: Arrays that have a row for each step, whatever they are called. By default the actions are known to.
    """

    ending = ".npz"

    def __init__(self, path: Path, named: Sequence[str] = ()):
        self._named = named
        super().__init__(path)
        self.key = cache.json_digest(self.key, list(named)) if named else self.key

    def _scan_files(self):
        self._arrays = [NpzArrays(file) for file in self.files]
        file_columns = [self._columns(arrays) for arrays in self._arrays]
        common = self._alike(file_columns, lambda column: (column[1].dtype, column[1].shape))
        self._keys = {name: key for name, (key, _, _) in common.items()}
        self.schema = {name: self._declared_feature(name) or f for name, (_, f, _) in common.items()}
        self.row_counts = {name: np.array([columns[name][2] for columns in file_columns], np.int64) for name in common}

    def _columns(self, arrays) -> dict[str, tuple[str, Feature, int]]:
        """Returns key, feature and rows of each column of a file. Other arrays are metadata of the episode."""
        values, columns, keys, steps = {}, {}, {}, self._steps(arrays)
        for key, (shape, dtype) in arrays.headers.items():
            if key == "fps" and shape in ((), (1,)):
                self._rate(arrays)
                continue
            column = bool(shape) and shape[0] in (steps, steps + 1) and 0 not in shape[1:]
            is_other = shape in ((), (1,)) or key not in self._named and self._rows_of_steps(arrays) and is_metadata(
                standard_name(key), shape, (steps, steps + 1))
            if not column and not is_other:
                raise UserError(f"the shape {shape} has neither {steps} rows (steps), or one more, nor a single value",
                                where=f"{arrays.path}, {key}", hint="correct the file, or leave it out")
            if column or key in ("task", "language_instruction"):
                images = arrays.encoded_images(key)
                f = images or Feature.from_array(np.empty((0, *shape[1:]), np.dtype(dtype).newbyteorder("=")))
                name, rows = standard_name(key, f.kind), int(shape[0]) if column else steps
                add_column(keys, name, key, arrays.path)
                shape = () if name in FLAG_COLUMNS or name == "next.reward" and shape[1:] == (1,) else f.shape
                columns[name] = key, Feature("bool" if name in FLAG_COLUMNS else f.dtype, shape, f.kind), rows
            else:
                own = arrays.read_array(key)
                values[key] = own.reshape(-1)[0].item() if shape in ((), (1,)) else own.tolist()
        self._episode_metadata.append(values)
        return columns

    def _rows_of_steps(self, arrays) -> list[int]:
        """Returns the numbers of rows of the arrays that are known to have one row for each step."""
        return [s[0] for k, (s, _) in arrays.headers.items()
                if s and (k in self._named if self._named else standard_name(k) == "action")]

    def _steps(self, arrays) -> int:
        rows = [s[0] for s, _ in arrays.headers.values() if s and s != (1,)] or [
            s[0] for s, _ in arrays.headers.values() if s]
        steps = min(self._rows_of_steps(arrays) or rows, default=0)
        if not steps:
            raise damaged("there are no arrays with rows", arrays.path)
        return int(steps)

    def _rate(self, arrays):
        value = checked_rate(arrays.read_array("fps")[0], f"{arrays.path}, fps")
        if self.metadata["fps"] not in (None, value):
            raise UserError(f"it has {value:g} steps per second, but others have {self.metadata['fps']:g}",
                            where=f"{arrays.path}, fps", hint="resample the episodes to one rate first")
        self.metadata["fps"] = value

    def iter_chunks(self):
        for e, arrays in enumerate(self._arrays):
            for name in self.numeric_columns:
                first = int(self._first[name][e])
                for row, values in arrays.iter_rows(self._keys[name]):
                    yield name, first + row, values

    def frames(self, name, episode):
        for row, values in self._arrays[episode].iter_rows(self._keys[name]):
            first = int(self._first[name][episode]) + row
            yield from enumerate(self.cast_to_schema(values, name, len(values), first), row)

    def read_text(self, name, episode):
        values, rows = self._arrays[episode].read_array(self._keys[name]), int(self.row_counts[name][episode])
        return values if len(values) == rows and rows > 1 else np.broadcast_to(values[:1], (rows, *values.shape[1:]))


class CsvFolderSource(FolderSource):
    """Reader of CSV tables with a row for each step, and of camera frames in PNG or JPEG files."""

    ending = ".csv"

    def _scan_files(self):
        """Reads every file once: whether a column is whole numbers is known only at its end."""
        kinds, times, cut, rows = [], [], [], []
        for file in self.files:
            text = read_table(file)
            table = _Table(file, text)
            kinds.append({name: (table.kind(name), len(keys)) for name, keys in table.columns.items()})
            rows.append({name: table.rows(name) for name in table.columns})
            if "timestamp" in table.columns and table.kind("timestamp") != "text":
                times.append(table.values("timestamp", "float64").reshape(-1))
            if not _ends_with_newline(file):
                cut.append(file.name)
            self._episode_metadata.append({})
        self._vectors = table.vectors
        if text.note:
            self.metadata["warnings"].append(LineOfNamesWarning(text.note))
        self._alike(kinds, lambda kind: f"{kind[1]} components")
        self.row_counts = {name: np.array([r[name] for r in rows], np.int64) for name in kinds[0]}
        order = [*_NUMBERS, "text"]
        for name in kinds[0]:
            of = {k[name][0] for k in kinds}
            widest = max(of, key=order.index)
            if widest == "text" and len(of) > 1:
                e = next(i for i, k in enumerate(kinds) if k[name][0] == "text")
                raise damaged("this is text, but other files have numbers", f"{self.files[e]}, {name}")
            self.schema[name] = self._declared_feature(name) or self._feature(name, widest, kinds[0][name][1])
            f = self.schema[name]
            if f.size != kinds[0][name][1] or (widest == "text" and f.kind != "string"):
                raise UserError(f"the files have {kinds[0][name][1]} columns of {widest}, but {DATASET_JSON} says "
                                f"{f.dtype} {f.shape}", where=f"{self.path}, {name}", hint="correct one of them")
        if cut:
            warning = f"{format_list(cut)}: the last line does not end, as if the file were cut short"
            self.metadata["warnings"].append(warning)
        self._look_for_frames()
        if self.metadata["fps"] is None:
            self.metadata["fps"] = frame_rate(times)

    def _feature(self, name, kind, size) -> Feature:
        shape = (size,) if name in self._vectors else ()
        if kind == "text":
            return Feature("string", shape, "string")
        f = Feature.from_array(np.empty((0, *shape), bool if name in FLAG_COLUMNS else _NUMBERS[kind]))
        return replace(f, names=self._vectors.get(name))

    def _look_for_frames(self):
        """Finds the camera frames in <stem>/<camera>/*.png or .jpg, one for each step or one more."""
        self._frames: dict[str, list[list[Path]]] = {}
        cameras = sorted({d.name for f in self.files for d in f.with_suffix("").glob("*") if d.is_dir()})
        for camera in cameras:
            name, camera_frames = standard_name(camera, "image"), []
            for e, file in enumerate(self.files):
                images = (p for p in (file.with_suffix("") / camera).glob("*") if p.suffix.lower() in _IMAGES)
                frames = sorted(images, key=lambda p: number_sort_key(p.stem))
                steps = min(int(r[e]) for r in self.row_counts.values())
                if len(frames) not in (steps, steps + 1):
                    raise damaged(f"there are {len(frames)} frames (PNG or JPEG) instead of {steps}, or one more",
                                  file.with_suffix("") / camera)
                camera_frames.append(frames)
            declared = self._declared_feature(name)
            first = camera_frames[0][0]
            self._frames[name] = camera_frames
            self.schema[name] = declared or image_feature(first.read_bytes(), str(first))
            self.row_counts[name] = np.array([len(f) for f in camera_frames], np.int64)
        if self._frames:  # frames are decoded into the cache
            stats = [f.stat() for episodes in self._frames.values() for frames in episodes for f in frames]
            self.key = cache.json_digest(self.key, *([s.st_size, s.st_mtime_ns] for s in stats))
        missing_columns = [n for n in self._dataset_json.get("features", {}) if n not in self.schema]
        if missing_columns:
            raise UserError(f"{DATASET_JSON} says that there is a column {missing_columns[0]}, but there are "
                            f"{format_list(self.schema, 12)}", where=self.path, hint="correct one of them")
        order = list(self._dataset_json.get("features", {}))
        self.schema = {n: self.schema[n] for n in (*order, *(n for n in self.schema if n not in order))}

    def _values(self, e) -> dict[str, np.ndarray]:
        """Returns the numbers and the text of a file, by column."""
        if self._last_values[0] != e:
            table = _Table(self.files[e], read_table(self.files[e]))
            self._last_values = e, {name: table.values(name, f.dtype).reshape(-1, *f.shape)
                                    for name, f in self.schema.items() if name not in self._frames}
        return self._last_values[1]

    _last_values: tuple[int, dict[str, np.ndarray]] = (-1, {})  # the file that was read last

    def iter_chunks(self):
        for e in range(len(self.files)):
            values = self._values(e)
            for name in self.numeric_columns:
                yield name, int(self._first[name][e]), values[name]

    def read_text(self, name, episode):
        return text_column(self._values(episode)[name])

    def frames(self, name, episode):
        f = self.schema[name]
        for row, file in enumerate(self._frames[name][episode]):
            yield row, video.decode_frame(file.read_bytes(), f.shape, str(file), f.dtype)

    @cached_property
    def numeric_columns(self):
        return [n for n, f in self.schema.items() if f.kind != "string" and n not in self._frames]


class _Table:
    """The cells of one CSV file, and the columns that they form.

    Attributes:
        columns: Positions of the components of each column.
        vectors: Columns with components, and their names in the file if these are not NAME_0, NAME_1, ...
    """

    def __init__(self, file: Path, text: TextTable):
        self.file, self.header, self.cells, self._lines = file, text.names, text.cells, text.lines
        self.columns, self.vectors = self._gather()
        last_two = zip(*self.cells[-2:], strict=True) if len(self.cells) > 1 else ()
        self._last = any(before.strip() and not last.strip() for before, last in last_two)  # seen after the last action

    def _gather(self) -> tuple[dict[str, list[int]], dict[str, tuple[str, ...] | None]]:
        """Joins NAME_0, NAME_1, ... in a CSV file into one column NAME."""
        parts: dict[str, dict[int, int]] = {}
        for at, key in enumerate(underscored(self.header)):
            match = _NUMBERED.fullmatch(key)
            stem, i = (match[1], int(match[2])) if match else (key, -1)
            if i in parts.setdefault(stem, {}) or (len(parts[stem]) and (i == -1 or -1 in parts[stem])):
                raise self._second_column(key, stem)
            parts[stem][i] = at
        columns: dict[str, list[int]] = {}
        vectors: dict[str, tuple[str, ...] | None] = {}
        for stem, places in parts.items():
            numbers = sorted(places)
            if -1 not in places and not _is_range(numbers):
                gap = next(i for i in range(len(numbers) + 1) if i not in places)
                raise UserError(f"there is no {stem}_{gap}, only {format_list(f'{stem}_{i}' for i in numbers)}",
                                where=f"{self.file}, line 1",
                                hint="number the components of a vector from 0, without a gap")
            name = standard_name(stem)
            if name in columns:
                raise self._second_column(stem, name)
            columns[name] = [places[i] for i in numbers]
            if -1 not in places:
                names = tuple(self.header[p] for p in columns[name])
                vectors[name] = None if names == tuple(f"{stem}_{i}" for i in range(len(names))) else names
        return columns, vectors

    def _second_column(self, key: str, name: str) -> UserError:
        return UserError(f"{key} is a second column {name}", where=f"{self.file}, line 1", hint="rename one of them")

    def rows(self, name) -> int:
        empty = [not self.cells[-1][p].strip() for p in self.columns[name]]
        return len(self.cells) - (self._last and all(empty))

    def kind(self, name) -> str:
        kinds = {_kind(row[p]) for row in self.cells[: self.rows(name)] for p in self.columns[name]}
        nonnumeric = kinds & {"text", "empty"}
        if nonnumeric == kinds or nonnumeric == {"text"} and len(self.columns[name]) == 1:
            return "text"
        if nonnumeric:
            raise self._no_number(name, nonnumeric)
        return max(kinds, key=list(_NUMBERS).index)

    def _no_number(self, name: str, kinds: set[str]) -> DataError:
        """Builds the error for the first cell of these kinds in a column of numbers."""
        cells = [(line, self.header[p], row[p]) for line, row in zip(self._lines, self.cells, strict=True)
                 for p in self.columns[name] if _kind(row[p]) in kinds]
        line, column, cell = cells[0]
        more = f" (so are {len(cells) - 1} others)" if len(cells) > 1 else ""
        problem = f"the cell is empty{more}" if not cell.strip() else f"this is not a number: {cell!r}"
        return DataError(problem, where=f"{self.file}, line {line}, column {column}",
                         hint="write the number there, or remove the row. Only the last row of an episode may have "
                              "empty cells: it is then the last observation")

    def values(self, name, dtype: str) -> np.ndarray:
        """Returns the values of a column, (rows, components)."""
        places, rows = self.columns[name], self.cells[: self.rows(name)]
        texts = [[row[p] for p in places] for row in rows]
        if dtype == "string":
            return np.array(texts, np.str_)
        try:
            plain = [[_WORDS.get(c.strip().lower(), c) for c in row] for row in texts]
            if np.dtype(dtype).kind in "iub":
                numbers = np.array([[int(c) for c in row] for row in plain], object)
                out = numbers.astype(np.int64 if dtype == "bool" else dtype)
                if not (out == numbers).all():
                    raise OverflowError(f"a number does not fit into {dtype}")
            else:
                out = np.array([[float(c) for c in row] for row in plain], np.float64).astype(dtype)
        except (ValueError, OverflowError) as error:
            raise damaged(f"a value is not {dtype} ({error})", f"{self.file}, {name}") from None
        return out


def underscored(header: list[str]) -> list[str]:
    """Returns the names with NAME.0, NAME.1, ... and NAME[0], NAME[1], ... as NAME_0, NAME_1, ..., if these are one
    vector."""
    groups: dict[tuple[str, bool], dict[str, int]] = {}  # NAME, whether in brackets -> the number of each name
    for key in header:
        if match := _BRACKETED.fullmatch(key):
            groups.setdefault((match[1], key[-1] == "]"), {})[key] = int(match[2] or match[3])
    taken = {*header, *(match[1] for key in header if (match := _NUMBERED.fullmatch(key)))}
    renamed = {key: f"{stem}_{i}" for (stem, bracket), numbers in groups.items() for key, i in numbers.items()
               if len(numbers) > 1 and _is_range(sorted(numbers.values())) and stem not in taken
               and (stem, not bracket) not in groups}
    return [renamed.get(key, key) for key in header]


def _is_range(numbers: list[int]) -> bool:
    """Returns whether numbers count up from 0, or from 1 if there are several."""
    first = 1 if numbers[0] == 1 and len(numbers) > 1 else 0
    return numbers == list(range(first, first + len(numbers)))


def _kind(cell: str) -> str:
    cell = cell.strip()
    if not cell:
        return "empty"
    if cell.lower() in _WORDS:
        return "bool"
    if _INT.fullmatch(cell):
        return "int" if _EXACT < abs(int(cell)) < 2**63 else "float"
    try:
        float(cell)
    except ValueError:
        return "text"
    return "text" if "_" in cell else "float"


def _ends_with_newline(file: Path) -> bool:
    with open(file, "rb") as handle:
        handle.seek(-1, 2)
        return handle.read(1) in (b"\n", b"\r")


# -- writing --------------------------------------------------------------------------------------------------------


def capability(data: Dataset) -> FormatCapability:
    """Returns which columns and metadata of a data set this format can store."""
    columns, lengths = {}, data.lengths
    stems: set[str] = set()
    for name, f in data.features().items():
        camera = f.kind == "image" and name.startswith(_CAMERA) and f.shape[2] in (1, 3, 4)
        stem = name.removeprefix(_CAMERA) if camera else name
        readable = standard_name(stem, "image" if camera else "vector") == name and (
            camera or not re.search(r"_\d+$", name) and not (_BRACKETED.fullmatch(name) and not f.shape))
        if not f.size or not re.fullmatch(r"\w[\w.\-]*", stem) or stem.lower() in stems or not readable:
            continue
        if f.kind == "string" and (f.shape or not all(_plain_text(e.steps[name]) for e in data)):
            continue
        if name in FLAG_COLUMNS and f.dtype != "bool":
            continue
        stems.add(stem.lower())
        last = bool((data.rows(name) > lengths).any()) and f.kind != "string"
        columns[name] = ColumnEncoding(name, f.dtype, f.shape, last)
    if all(place.has_last_row for name, place in columns.items() if not name.startswith(_CAMERA)):
        columns = {name: replace(place, has_last_row=False) for name, place in columns.items()}
    return FormatCapability(columns, component_names=True, units=True, fps=True, robot_type=True,
                            read_columns=tuple(columns))


def _plain_text(column) -> bool:
    """Returns whether CSV stores a text unchanged: without carriage returns, not empty, and not like a number."""
    return all(_kind(t) == "text" and t == t.strip() and "\r" not in t and not CONTROL_CHARACTERS.search(t)
               and len(t) < MAX_CELL_BYTES // 4 for t in map(str, np.ravel(column)))


def write(data: Dataset, path: str | Path) -> None:
    """Writes a folder of episode_000000.csv and so on, camera frames as PNG, and dataset.json. Numbers are exact."""
    path = Path(path)
    kept, features = capability(data), data.features()
    cameras = [n for n in kept.columns if n.startswith(_CAMERA) and features[n].kind == "image"]
    plain = [n for n in kept.columns if n not in cameras]
    if not plain:
        raise UserError(f"there is no column of numbers or text, only {format_list(features, 12)}", where=path,
                        hint="a CSV folder needs at least one column of them: choose another format")
    with sidecar.new_folder(path, data, kept) as part:
        for e, episode in enumerate(data):
            rows = {n: slice(len(episode) + place.has_last_row) for n, place in kept.columns.items()}
            with open(part / f"episode_{e:06d}.csv", "w", encoding="utf-8", newline="") as out:
                table = csv.writer(out, lineterminator="\n")
                table.writerow([h for n in plain for h in _headers(n, features[n])])
                table.writerows(_rows([np.asarray(episode.steps[n])[rows[n]] for n in plain]))
            for name in cameras:
                place = part / f"episode_{e:06d}" / name.removeprefix(_CAMERA)
                place.mkdir(parents=True)
                for row, frame in enumerate(np.asarray(episode.steps[name])[rows[name]]):
                    (place / f"{row:06d}.png").write_bytes(video.encode_png(frame))
        about = {"episodes": len(data), "fps": data.fps, "robot_type": data.metadata.get("robot_type"),
                 "features": {n: {k: v for k, v in asdict(features[n]).items() if v is not None}
                              for n in kept.columns}}
        write_json(part / DATASET_JSON, about)


def _headers(name: str, f: Feature) -> list[str]:
    return [f"{name}_{i}" for i in range(f.size)] if f.shape else [name]


def _rows(columns: list[np.ndarray]) -> Iterator[list[str]]:
    """Yields the cells of each row, (rows, components). Columns without such a row have empty cells."""
    flat = [column.reshape(len(column), -1) for column in columns]
    for row in range(max(map(len, flat))):
        cells: list[str] = []
        for column in flat:
            cells += map(_cell, column[row]) if row < len(column) else [""] * column.shape[1]
        yield cells


def _cell(value) -> str:
    if isinstance(value, np.str_):
        return str(value)
    if isinstance(value, np.bool_):
        return str(int(value))
    return repr(float(value)) if isinstance(value, np.floating) else str(int(value))

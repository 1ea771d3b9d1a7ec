"""Reader of LeRobot data sets: v3.0 (recorded or converted), v2.1 and v2.0. See lerobot.py."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...core import Feature, UserError
from ...files import file_sha256, read_json
from ...hints import repair_hint
from .. import cache, video
from ..episode import episode_starts
from ..sources import MemmapSource, batch_ranges, first_misfit
from . import remote
from .lerobot_videos import VideoColumns
from .parts import arrow
from .parts.column_names import format_list
from .parts.key_map import metadata
from .parts.path_pattern import fill_pattern
from .parts.read_errors import damaged, first_true, read_json_object

INDEX_COLUMNS = ("timestamp", "frame_index", "episode_index", "index", "task_index")  # in every file, in this order
UNDERSTUDY_FOLDER = Path("meta") / "understudy"
_READ_KEYS = {"codebase_version", "robot_type", "total_episodes", "total_frames", "total_tasks", "total_videos",
          "total_chunks", "chunks_size", "data_files_size_in_mb", "video_files_size_in_mb", "fps", "splits",
          "data_path", "video_path", "features", "tools"}
_CORRECT = "correct meta/info.json, or take it from a copy"
_ROWS, _BYTES = 2**16, 2**24  # read at a time; a larger row group is read as a whole


# -- what describes the data ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EpisodeIndex:
    """Positions of the episodes of a LeRobot data set in its files.

    Args:
        lengths: Number of steps of each episode, (E,) int64.
        file: Index in `files` of the file of each episode, (E,) int64.
        start: First row of each episode in its file, (E,) int64.
        tasks: Text of each task by its number.
        videos: For each camera, the file of each episode and the time in it at which the episode begins, (E,) in s.
    """

    lengths: np.ndarray  # (E,) int64
    files: tuple[str, ...]
    file: np.ndarray  # (E,) int64
    start: np.ndarray  # (E,) int64
    tasks: Mapping[int, str]
    videos: Mapping[str, tuple[tuple[str, ...], np.ndarray]] = field(default_factory=dict)  # camera: files, from (s)


class LeRobotSource(MemmapSource):
    """Reader of a LeRobot folder, by its metadata. Data are read when they are asked for."""

    def __init__(self, path: Path):
        self.path = path = Path(path)
        self.info = info = read_info(path)
        self._warnings: list[str] = []
        self._files: dict[Path, pq.ParquetFile] = {}  # the one that was read last
        self._groups: dict[str, tuple[tuple[Path, int], pa.Array]] = {}  # by column, likewise
        unknown = sorted(set(info) - _READ_KEYS)
        if unknown:
            self._warnings.append(f"meta/info.json: unknown keys {', '.join(unknown)} are ignored")
        schema_file = path / UNDERSTUDY_FOLDER / "schema.json"
        self._extra_metadata = read_json(schema_file) if schema_file.exists() else {}
        version = info["codebase_version"]
        self.index = read_index_v3(path, info) if version == "v3.0" else read_index_v2(path, info)
        self.lengths = self.index.lengths
        self.videos = VideoColumns(path, self.index.videos, info["fps"], self._times)
        if not len(self.lengths) and not (path / UNDERSTUDY_FOLDER).is_dir():  # a recording of ours may have none yet
            raise UserError("the data set has no episodes", where=path,
                            hint="record some (understudy record ENV --out DATA --episodes 20)")
        self._check_files()
        self.schema, self._stored = self._features()
        self.metadata = metadata("lerobot", path, self._warnings, version, self._extra_metadata.get("fps", info["fps"]),
                                 info.get("robot_type"))

    @cached_property
    def _file_names(self) -> list[str]:
        """Names of the files of data and of videos."""
        return sorted({*self.index.files, *(f for files, _ in self.index.videos.values() for f in files)})

    def _check_files(self):
        for name in self._file_names:
            if not remote.exists(self.path / name):
                raise UserError("the metadata name this file, but it is missing", where=self.path / name,
                                hint=repair_hint(self.path))

    def _features(self) -> tuple[dict[str, Feature], dict[str, str]]:
        """Returns the schema, and how each column is stored: "number", "string", "image", "video" or "task"."""
        schema, stored = {}, {}
        for name, f in self.info["features"].items():
            location = f"{self.path / 'meta/info.json'}, features.{name}"
            if name in INDEX_COLUMNS[1:]:
                continue
            dtype, shape = f["dtype"], tuple(f["shape"])
            depth = any((f.get(k) or {}).get(f"{v}is_depth_map") for k in ("info", "video_info") for v in
                        ("", "video."))
            if dtype == "image" and self._extra_metadata.get("columns", {}).get(name, {}).get("kind") == "depth":
                schema[name], stored[name] = Feature("uint16", shape, "depth"), "image"
            elif dtype == "language" or depth:
                kind = "depth video" if depth else "a language column"
                self._warnings.append(f"{name}: {kind} cannot be read yet; the column is left out")
            elif dtype in ("image", "video"):
                first = str((_names(f) or ("",))[0])
                shape = (*shape[1:], shape[0]) if first.startswith("channel") else shape
                if len(shape) != 3 or not all(type(n) is int and n > 0 for n in shape) or shape[2] not in (1, 3, 4):
                    raise UserError(f"{f['shape']} is not the shape (height, width, channels) of an image",
                                    where=location, hint=_CORRECT)
                schema[name], stored[name] = Feature("uint8", shape, "image"), dtype
            elif dtype == "string":
                schema[name], stored[name] = Feature("string", (), "string"), "string"
            else:
                schema[name], stored[name] = self._numbers(name, f, location), "number"
        for name, f in self._extra_metadata.get("columns", {}).items():
            if name in schema:
                schema[name] = Feature.from_json(f)
        for name in self._extra_metadata.get("hidden", ()):
            schema.pop(name, None)
        if "task" not in self._extra_metadata.get("hidden", ()):
            schema["task"], stored["task"] = Feature("string", (), "string"), "task"
        order = [n for n in self._extra_metadata.get("columns", ()) if n in schema]
        return {n: schema[n] for n in dict.fromkeys([*order, *schema])}, stored

    def _numbers(self, name, f, where):
        try:
            dtype = np.dtype(f["dtype"])
        except TypeError:
            dtype = np.dtype("O")
        if dtype.kind not in "biuf":
            raise UserError(f"the dtype {f['dtype']!r} is not a NumPy number, image, video or string",
                            where=where, hint=_CORRECT)
        shape = tuple(f["shape"])
        if not all(isinstance(n, int) and n > 0 for n in shape):
            raise UserError(f"the shape {f['shape']} has numbers that are not above 0", where=where, hint=_CORRECT)
        # One number a step: what is observed or done keeps its axis of components, an outcome is a number.
        if shape == (1,) and not name.startswith(("observation.", "action")):
            shape = ()
        feature, names = Feature.from_array(np.empty((0, *shape), dtype)), _names(f)
        return replace(feature, names=names) if names and len(names) == feature.size else feature

    # -- columns ----------------------------------------------------------------------------------------------------

    @cached_property
    def key(self) -> str:
        """Digest of the sizes and times of all data files and of the contents of meta, which identifies the data."""
        stats = {name: remote.version_key(self.path / name) for name in self._file_names}
        meta = {str(p.relative_to(self.path)): file_sha256(p)[:32] for p in sorted((self.path / "meta").rglob("*"))
                if p.is_file() and not p.name.startswith(".") and not p.name.endswith(".part")}
        return cache.json_digest("lerobot", stats, meta)

    @cached_property
    def _last(self) -> Mapping[str, tuple[np.ndarray, pa.Array]]:
        """Rows after the last action, by column: the episodes (n,) that have one, and these rows."""
        file = self.path / UNDERSTUDY_FOLDER / "last.parquet"
        if not file.exists():
            return {}
        table = open_parquet(file).read()
        episode = table["episode_index"].to_numpy()
        out = {}
        for name in self.schema.keys() & table.column_names:
            has_row = table[name].is_valid().to_numpy() & (episode < len(self.lengths))
            if has_row.any():
                out[name] = episode[has_row], table[name].combine_chunks().filter(pa.array(has_row))
        return out

    def rows(self, name):
        return self._rows.get(name, self.lengths)

    @cached_property
    def _rows(self) -> dict[str, np.ndarray]:
        out = {name: self.lengths.copy() for name in self._last}
        for name, (episodes, _) in self._last.items():
            out[name][episodes] += 1
        return out

    @cached_property
    def numeric_columns(self):
        return [n for n in self.schema if self._stored[n] == "number"]

    @cached_property
    def _layout(self):
        return {**super()._layout, "task_index": ((int(self.lengths.sum()),), "int64")}

    @cached_property
    def _first(self):
        return {**super()._first, "task_index": episode_starts(self.lengths)}

    def iter_chunks(self):
        """Reads every data file once, some row groups at a time, and compares its index columns with the metadata."""
        task_numbers = np.array(sorted(self.index.tasks), np.int64)
        for number, name in enumerate(self.index.files):
            yield from self._rows_of_file(number, self.path / name, task_numbers)
        for name, (episodes, values) in self._last.items():
            if name in self.numeric_columns:
                at = self._first[name][episodes] + self.lengths[episodes]
                location = f"{self.path / UNDERSTUDY_FOLDER / 'last.parquet'}, {name}"
                yield name, at, to_numpy(values, self.schema[name], location)

    def cast_to_schema(self, values, name, rows, at):
        return values  # `to_numpy` has checked them

    def rows_by_file(self) -> list[tuple[Path, np.ndarray]]:
        """Returns the data files, and the rows of each that belong to episodes, (n,)."""
        out = []
        for number, name in enumerate(self.index.files):
            episodes = np.flatnonzero(self.index.file == number)
            begin, length = self.index.start[episodes], self.lengths[episodes]
            out.append((self.path / name, np.repeat(begin - episode_starts(length), length) + np.arange(length.sum())))
        return out

    def _rows_of_file(self, number, file, task_numbers):
        names = self.numeric_columns
        episodes = np.flatnonzero(self.index.file == number)
        lengths, begin = self.lengths[episodes], self.index.start[episodes]
        source = open_parquet(file)
        if source.metadata.num_rows < int((begin + lengths).max()):
            raise damaged(f"it has {source.metadata.num_rows} rows, but the metadata say "
                          f"{int((begin + lengths).max())}", file)
        columns = [*names, "episode_index", "frame_index", "task_index"]
        for name in columns:
            _check_column(source, name, file)
        sizes = {name: self.schema[name].size for name in names}
        arrow.check_decoded_size(source.metadata, sizes, int(self.lengths.sum()), file)
        row, read = 0, None
        width = sum(self.schema[n].size * np.dtype(self.schema[n].dtype).itemsize for n in names)
        for groups in batches(source.metadata, width):
            del read  # so that two of them are never in memory at once
            read = read_groups(source, groups, columns, file)
            until = row + read.num_rows
            # The episode of each row. Rows of no episode are skipped.
            in_batch = np.flatnonzero((begin < until) & (begin + lengths > row))
            low = np.maximum(begin[in_batch], row)
            n = np.minimum(begin[in_batch] + lengths[in_batch], until) - low
            take = np.repeat(low - row - episode_starts(n), n) + np.arange(n.sum())
            step = np.repeat(low - begin[in_batch] - episode_starts(n), n) + np.arange(n.sum())
            row_episodes = np.repeat(episodes[in_batch], n)
            task = read["task_index"].to_numpy()[take]
            for index, expected in (("episode_index", row_episodes), ("frame_index", step)):
                actual = read[index].to_numpy()[take]
                if (at := first_true(actual != expected)) is not None:
                    raise damaged(f"{index} is {actual[at]} instead of {expected[at]}",
                                  f"{file}, episode {row_episodes[at]}, frame {step[at]}")
            if (at := first_true(~np.isin(task, task_numbers))) is not None:
                raise UserError(f"task_index {task[at]} is not among the tasks in meta "
                                f"({', '.join(map(str, task_numbers))})",
                                where=f"{file}, episode {row_episodes[at]}, frame {step[at]}",
                                hint="add the task to meta/tasks, or correct the row")
            for name in names:
                values = to_numpy(read[name].combine_chunks(), self.schema[name], f"{file}, {name}")
                yield name, self._first[name][row_episodes] + step, values[take]
            yield "task_index", self._first["task_index"][row_episodes] + step, task
            row = until

    def episode_metadata(self, episode):
        return self._episode_metadata.get(episode, {})

    @cached_property
    def _episode_metadata(self) -> dict[int, dict]:
        file = self.path / UNDERSTUDY_FOLDER / "episodes.jsonl"
        own = {r["episode_index"]: r["facts"] for r in read_json_lines(file)} if file.exists() else {}
        segments = _subtasks(self.path, self.lengths)
        return {e: {**segments.get(e, {}), **own.get(e, {})} for e in {**segments, **own}}

    def read_text(self, name, episode):
        if self._stored[name] == "task":
            return self._task(episode)
        texts = [*self._stored_rows(name, episode).to_pylist(), *self._last_of(name, episode)]
        return np.array([t or "" for t in texts], np.str_)

    def _task(self, episode):
        first, length = self._first["task_index"][episode], int(self.lengths[episode])
        numbers = self._maps["task_index"][first: first + length]
        if (numbers == numbers[0]).all():  # the usual case
            return np.broadcast_to(np.array([self.index.tasks[int(numbers[0])]], np.str_), (length,))
        return np.array([self.index.tasks[int(i)] for i in numbers], np.str_)

    def _last_of(self, name, episode) -> list:
        if self.rows(name)[episode] == self.lengths[episode]:
            return []
        episodes, values = self._last[name]
        return [values[int(np.argmax(episodes == episode))].as_py()]

    def frames(self, name, episode) -> Iterator[tuple[Any, np.ndarray]]:
        shape, dtype = self.schema[name].shape, self.schema[name].dtype
        length = int(self.lengths[episode])
        if self._stored[name] == "video":
            yield from self.videos.frames(name, episode, cast(tuple[int, int, int], shape))
        else:
            file = self.path / self.index.files[self.index.file[episode]]
            for row, image in enumerate(self._stored_rows(name, episode)):
                location = f"{file}, episode {episode}, frame {row}, {name}"
                yield row, video.decode_frame((image.as_py() or {}).get("bytes"), shape, location, dtype)
        for image in self._last_of(name, episode):
            location = f"{self.path / UNDERSTUDY_FOLDER / 'last.parquet'}, episode {episode}, {name}"
            yield length, video.decode_frame(image["bytes"], shape, location, dtype)

    def _times(self, episode) -> np.ndarray:
        """Returns the time of each row in s since the episode began, (T,)."""
        first, length = self._first["task_index"][episode], int(self.lengths[episode])
        if "timestamp" not in self._maps:
            return np.arange(length) / self.info["fps"]
        return self._maps["timestamp"][first: first + length].astype(np.float64)

    def _stored_rows(self, name, episode) -> pa.ChunkedArray:
        """Reads the rows of one episode from its file."""
        file = self.path / self.index.files[self.index.file[episode]]
        begin, length = int(self.index.start[episode]), int(self.lengths[episode])
        source = self._open(file)
        _check_column(source, name, file)
        n_rows = source.metadata.num_rows - begin
        if n_rows < length:
            raise damaged(f"it has {max(n_rows, 0)} rows of episode {episode}, but the metadata say {length}", file)
        groups = [source.metadata.row_group(i).num_rows for i in range(source.metadata.num_row_groups)]
        starts = episode_starts(np.array(groups))
        first, stop = np.searchsorted(starts, [begin + 1, begin + length]).tolist()
        values = pa.chunked_array([self._group(file, group, name) for group in range(first - 1, stop)])
        return values.slice(begin - int(starts[first - 1]), length)

    def _open(self, file: Path) -> pq.ParquetFile:
        if file not in self._files:
            self._files.clear()  # one at a time: episodes are read in order
            self._files[file] = open_parquet(file)
        return self._files[file]

    def _group(self, file, group, name) -> pa.Array:
        if self._groups.get(name, (None,))[0] != (file, group):
            read = read_groups(self._open(file), [group], [name], file)[name].combine_chunks()
            self._groups[name] = (file, group), read
        return self._groups[name][1]


def read_info(path: Path) -> dict:
    """Reads meta/info.json, and checks that it has the keys that are needed."""
    file = path / "meta" / "info.json"
    info = read_json_object(file)
    for key, kind in (("codebase_version", str), ("fps", (int, float)), ("features", dict), ("data_path", str),
                      ("total_episodes", int), ("total_frames", int)):
        if not isinstance(info.get(key), kind):
            raise damaged(f"the key {key!r} is missing or wrong: {info.get(key)!r}", file)
    if info["codebase_version"] not in ("v3.0", "v2.1", "v2.0"):
        raise UserError(f"LeRobot {info['codebase_version']} is not read, only v3.0, v2.1 and v2.0", where=file,
                        hint="convert it with lerobot (python -m lerobot.datasets.v30.convert_dataset_v21_to_v30)")
    if not info["fps"] > 0:
        raise UserError(f"fps must be above 0, but is {info['fps']}", where=file, hint=_CORRECT)
    for name, f in info["features"].items():
        if not isinstance(f, dict) or "dtype" not in f or not isinstance(f.get("shape"), list):
            raise UserError(f"this is not an object with dtype and shape: {f!r}", where=f"{file}, features.{name}",
                            hint=_CORRECT)
    return info


def read_index_v3(path: Path, info: dict) -> EpisodeIndex:
    """Reads the position of each episode from the tables of v3.0."""
    folder = path / "meta" / "episodes"
    files, cameras = sorted(folder.glob("*/*.parquet")), _cameras(info)
    is_own, n_episodes = (path / UNDERSTUDY_FOLDER).is_dir(), int(info["total_episodes"])
    if is_own and not n_episodes:
        none = np.zeros(0, np.int64)
        return EpisodeIndex(none, (), none, none, {}, dict.fromkeys(cameras, ((), np.zeros(0))))
    if not files:
        raise damaged("there are no episode tables", folder)
    places = ["data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index"]
    video_columns = [f"videos/{c}/{k}" for c in cameras for k in ("chunk_index", "file_index", "from_timestamp")]
    column_names = ["episode_index", "length", *places, *video_columns]
    parts = [_read_columns(open_parquet(file), column_names, file) for file in files]
    table = {n: np.concatenate([p[n].to_numpy() for p in parts]) for n in column_names}
    order = np.argsort(table["episode_index"], kind="stable")
    if is_own and len(order) > n_episodes:  # an append that did not finish: it replaces info.json last
        order = order[table["episode_index"][order] < n_episodes]
    table = {n: v[order] for n, v in table.items()}
    number, length, count = table["episode_index"], table["length"], len(order)
    if (number != np.arange(count)).any():
        raise UserError(f"the {count} episodes have the numbers {format_list(number, 20)}", where=folder,
                        hint=f"number them from 0 to {count - 1}, in the tables and in the data")
    span = table["dataset_to_index"] - table["dataset_from_index"]
    if (e := first_true((span != length) | (length < 1))) is not None:
        raise damaged(f"it is {length[e]}, but dataset_to_index - dataset_from_index is {span[e]}",
                      f"{folder}, episode {e}, length")

    def places(key, of, **more):
        """Returns the files that hold the episodes, and for each episode which file holds it."""
        at = np.stack([table[f"{of}/chunk_index"], table[f"{of}/file_index"]], 1)
        distinct, which = np.unique(at, axis=0, return_inverse=True)
        return tuple(_format(info, key, path, chunk_index=int(c), file_index=int(f), **more)
                     for c, f in distinct), which.reshape(-1)

    distinct, file = places("data_path", "data")
    first = np.full(len(distinct), np.iinfo(np.int64).max)
    np.minimum.at(first, file, table["dataset_from_index"])
    videos = {}
    for c in cameras:
        video_files, which = places("video_path", f"videos/{c}", video_key=c)
        videos[c] = tuple(video_files[i] for i in which), table[f"videos/{c}/from_timestamp"]
    return EpisodeIndex(length, distinct, file, table["dataset_from_index"] - first[file], read_tasks_v3(path), videos)


def _subtasks(path: Path, lengths: np.ndarray) -> dict[int, dict]:
    """Reads the subtasks that LeRobot's annotation for SARM adds to the episode tables, dense ones if there are any.

    They are the metadata `segments` of `data.segments`, a list of [start, stop, task] for each annotated episode.
    """
    segments: dict[int, dict] = {}
    for file in sorted((path / "meta" / "episodes").glob("*/*.parquet")):
        source = open_parquet(file)
        columns = source.schema_arrow.names
        if (kind := next((k for k in ("dense_", "sparse_", "") if f"{k}subtask_names" in columns), None)) is None:
            continue
        fields = [f"{kind}subtask_{field}" for field in ("start_frames", "end_frames", "names")]
        table = _read_columns(source, ["episode_index", *fields], file)
        for episode, *parts in zip(*(table[n].to_pylist() for n in ("episode_index", *fields)), strict=True):
            if all(parts) and episode < len(lengths):
                if len(set(map(len, parts))) > 1:
                    counts = ", ".join(f"{len(part)} {field}" for part, field in zip(parts, fields, strict=True))
                    raise UserError(f"episode {episode} has {counts}", where=file,
                                    hint="annotate the episode again: each subtask needs one of each")
                inside = zip(*parts, strict=True)
                segments[episode] = {"segments": [[int(a), min(int(b), int(lengths[episode])), str(text)]
                                                  for a, b, text in inside if a < min(b, lengths[episode])]}
    return segments


def read_tasks(path: Path) -> dict[int, str]:
    """Reads the text of each task by its number."""
    return read_tasks_v3(path) if read_info(path)["codebase_version"] == "v3.0" else read_tasks_v2(path)


def read_tasks_v3(path: Path) -> dict[int, str]:
    """Reads the text of each task by its number, in v3.0."""
    file = path / "meta" / "tasks.parquet"
    table = _read_columns(open_parquet(file), None, file)
    texts = [f.name for f in table.schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
    named = [n for n in json.loads((table.schema.metadata or {}).get(b"pandas", b"{}")).get("index_columns", ())
             if n in texts]
    if "task_index" not in table.column_names or not (named or len(texts) == 1):
        raise damaged(f"it has the columns {', '.join(table.column_names)}, but not task_index and task", file)
    return _tasks(zip(table["task_index"].to_pylist(), table[(named or texts)[0]].to_pylist(), strict=True), file)


def read_tasks_v2(path: Path) -> dict[int, str]:
    """Reads the text of each task by its number, in v2.0 or v2.1."""
    file = path / "meta" / "tasks.jsonl"
    rows = [r if isinstance(r, dict) else {} for r in read_json_lines(file)]
    return _tasks(((r.get("task_index"), r.get("task")) for r in rows), file)


def _tasks(pairs: Iterable[tuple[Any, Any]], file: Path) -> dict[int, str]:
    out = {}
    for number, text in pairs:
        if type(number) is not int or not -2**63 <= number < 2**63 or not isinstance(text, str):
            raise damaged(f"a task needs an integer and a text, but has {number!r} and {text!r}", file)
        out[number] = text
    return out


def read_index_v2(path: Path, info: dict) -> EpisodeIndex:
    """Reads the position of each episode from the metadata of v2.0 or v2.1."""
    episodes = sorted(read_json_lines(path / "meta" / "episodes.jsonl"), key=lambda r: r.get("episode_index", -1))
    for i, row in enumerate(episodes):
        if row.get("episode_index") != i or not isinstance(row.get("length"), int) or row["length"] < 1:
            raise UserError(f"this is not episode {i} with its length: {row}", where=path / "meta/episodes.jsonl",
                            hint="number the episodes without gaps, from 0")
    lengths = np.array([r["length"] for r in episodes], np.int64)
    tasks = read_tasks_v2(path)
    chunks = max(1, int(info.get("chunks_size", 1000)))

    def named(key, **more):
        return tuple(_format(info, key, path, episode_chunk=e // chunks, episode_index=e, **more)
                     for e in range(len(episodes)))

    videos = {c: (named("video_path", video_key=c), np.zeros(len(episodes))) for c in _cameras(info)}
    return EpisodeIndex(lengths, named("data_path"), np.arange(len(episodes)), np.zeros_like(lengths), tasks, videos)


# -- small things ---------------------------------------------------------------------------------------------------


def _cameras(info: Mapping) -> list[str]:
    return [name for name, f in info["features"].items() if f["dtype"] == "video"]


def _format(info, key, path, **values) -> str:
    try:
        name = fill_pattern(info[key], **values)
    except (KeyError, TypeError, ValueError):
        raise damaged(f"{info.get(key)!r} is not a pattern of {', '.join(values)}",
                      f"{path / 'meta/info.json'}, {key}") from None
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"{name!r} is outside the data set", where=f"{path / 'meta/info.json'}, {key}", hint=_CORRECT)
    return name


def open_parquet(file: Path) -> pq.ParquetFile:
    """Opens a Parquet file. A remote file is downloaded first."""
    local = remote.fetch_file(file)
    if not local.exists():
        raise damaged("the file is missing", file)
    with arrow.arrow_errors(file, "the Parquet file"):
        # What is buffered stays until the file is closed. A relative path with a colon would be an address to pyarrow.
        return pq.ParquetFile(local.absolute(), pre_buffer=False)


def _check_column(source: pq.ParquetFile, name: str, file: Path) -> None:
    if name not in source.schema_arrow.names:
        raise UserError(f"there is no column {name!r}; there are {', '.join(source.schema_arrow.names)}", where=file,
                        hint=_CORRECT)


def _read_columns(source: pq.ParquetFile, names: list[str] | None, file: Path) -> pa.Table:
    for name in names or ():
        _check_column(source, name, file)
    with arrow.arrow_errors(file, "a column"):
        return source.read(columns=names)


def batches(metadata: pq.FileMetaData, width: int) -> Iterator[list[int]]:
    """Yields the row groups of a Parquet file in turn, small ones together, because reading each alone is slow.

    width: bytes of a decoded row, which may be many times what it takes in the file."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    takes = [max(g.num_rows / _ROWS, max(g.total_byte_size, g.num_rows * width) / _BYTES) for g in groups]
    for first, stop in batch_ranges(np.array(takes), 1):
        yield list(range(first, stop))


def read_groups(source: pq.ParquetFile, groups: list[int], names: list[str], file: Path) -> pa.Table:
    which = f"row group {groups[0]}" if len(groups) == 1 else f"row groups {groups[0]} to {groups[-1]}"
    with arrow.arrow_errors(file, which):
        return source.read_row_groups(groups, columns=names, use_threads=False)


def to_numpy(values: pa.Array, feature: Feature, where: str) -> np.ndarray:
    """Converts an Arrow column of numbers or nested lists to an array of a feature's dtype and shape, (n, *shape)."""
    numbers = arrow.to_numpy(values, where)
    if numbers.size != len(values) * feature.size:
        raise damaged(f"{len(values)} rows have {numbers.size} numbers, but the shape {feature.shape} needs "
                      f"{feature.size} in each row", where)
    with np.errstate(invalid="ignore"):  # of NaN
        cast = numbers.astype(feature.dtype, copy=False)
    if (misfit := first_misfit(numbers, cast)) is not None:
        raise UserError(f"meta/info.json says {feature.dtype}, which does not hold {numbers[misfit]}", where=where,
                        hint=_CORRECT)
    return cast.reshape(len(values), *feature.shape)


def read_json_lines(file: Path) -> list[dict]:
    """Reads a file with one JSON object per line."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise damaged("the file is missing", file) from None
    except UnicodeDecodeError as error:
        raise damaged(f"the text is not UTF-8 ({error})", file) from None
    out = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                out.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise damaged(f"line {number} is not a JSON object ({error})", file) from None
    return out


def _names(feature: Mapping) -> tuple[str, ...] | None:
    """Reads the names of components: a list, or lists by some key ({"motors": [...]})."""
    names = feature.get("names")
    if isinstance(names, Mapping):
        names = [n for v in names.values() for n in (v if isinstance(v, list) else [v])]
    return tuple(map(str, names)) if names else None


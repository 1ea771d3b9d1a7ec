"""Writer of LeRobot v3.0 data sets: all episodes at once (`write`), or some at a time while recording (`append`)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...core import Feature, UserError
from ...files import read_json, sync_file, sync_folder, whole_folder, write_json, write_text
from .. import cache, video
from ..episode import Dataset, Episode
from ..journal import JournalFrames
from .lerobot_read import (
    INDEX_COLUMNS,
    UNDERSTUDY_FOLDER,
    LeRobotSource,
    open_parquet,
    read_info,
    read_json_lines,
)
from .lerobot_stats import (
    aggregate_statistics,
    episode_statistics,
    image_statistics,
    image_statistics_so_far,
    number_statistics,
    plain_lists,
    pool_statistics,
    stack_statistics,
)
from .parts import sidecar
from .parts.column_names import number_sort_key
from .parts.path_pattern import fill_pattern
from .parts.sidecar import ColumnEncoding, FormatCapability

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_CODECS = {"libsvtav1": "av1", "libx264": "h264"}  # the first one that is installed and can encode the frames is used
_NUMBER_BYTES_AT_ONCE = 1 << 22  # statistics and tables are computed for so many bytes of numbers at once
_FRAME_BYTES_AT_ONCE = 1 << 25  # so many bytes of frames are in memory at once
_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
SAFE_FPS = 10  # stored if the rate is not known; schema.json in meta/understudy says so


def write(dataset: Dataset, path: str | Path, *, images: Literal["video", "av1", "h264", "png"] = "video") -> None:
    """Writes a LeRobot v3.0 data set, which lerobot opens unchanged.

    The row after the last action is stored in meta/understudy/last.parquet. The columns frame_index, episode_index,
    index and task_index are numbered again. Their values in the data, and columns that lerobot cannot store, are kept
    in a sidecar file.

    Args:
        path: The new folder. It is complete or absent, also after a crash.
        images: ``"png"`` is lossless. ``"video"`` is lossy and small: ``"av1"``, or ``"h264"`` if the frames cannot be
            encoded as AV1 here.
    """
    check_images(images)
    own, kept = split_for_lerobot(dataset)
    with sidecar.new_folder(path, dataset, kept) as part:
        _LeRobotWriter.create(part, own.features(), dataset.fps, dataset.metadata.get("robot_type"), images).add(own)


def check_images(images: str) -> None:
    """Raises an error if the option `images` of `write` has an unknown value."""
    if images not in ("video", "png", *_CODECS.values()):
        raise UserError(f"images must be video, {', '.join(_CODECS.values())} or png, not {images!r}",
                        hint="choose one of them")


def capability(data: Dataset, images: str = "png") -> FormatCapability:
    """Returns what lerobot can store of these data, with frames stored as `images` (see `write`).

    The rest is in meta/understudy and in the sidecar file.
    """
    own, _ = split_for_lerobot(data)
    plan = _plan(own.features(), data.fps, None, images)
    columns = {name: ColumnEncoding(name, f.dtype, f.shape, is_exact=name == "task" or plan.stored(name) != "video")
               for name, f in plan.columns.items()}
    if "timestamp" in columns and not _timestamps_start_at_zero(data):
        del columns["timestamp"]  # stored timestamps start at 0
    return FormatCapability(columns, component_names=True, fps=True, robot_type=True)


def split_for_lerobot(data: Dataset) -> tuple[Dataset, FormatCapability]:
    """Splits data into what LeRobot's files and meta/understudy store, and what goes into a sidecar file.

    Timestamps are stored as float32 and begin at 0. If they do not increase, they are computed from fps.

    Returns:
        The data without the columns for the sidecar file, and what is read again of `data` without it.
    """
    features = data.features()
    aside: dict[str, Callable | None] = {name: None for name, f in features.items() if not _fits(name, f)}
    if INDEX_COLUMNS[0] in features and INDEX_COLUMNS[0] not in aside:
        begins = _timestamps_start_at_zero(data)
        times = [np.asarray(e.steps[INDEX_COLUMNS[0]])[:len(e)] for e in data]
        stored = [_from_zero(t, begins) for t in times]
        if not all(len(t) and np.isfinite(t).all() and (np.diff(t) > 0).all() for t in stored):
            aside[INDEX_COLUMNS[0]] = None
        elif any(t.astype(was.dtype).tobytes() != was.tobytes() for t, was in zip(stored, times, strict=True)):
            aside[INDEX_COLUMNS[0]] = partial(_from_zero, begins=begins)

    def own(e):
        return e.replace({n: change and change(np.asarray(e.steps[n])) for n, change in aside.items() if n in e.steps})

    columns = {n: ColumnEncoding(n, f.dtype, f.shape, has_last_row=n not in ("task", INDEX_COLUMNS[0]))
               for n, f in features.items() if n not in aside}
    meta = frozenset(key for e in data for key in e.metadata)
    reads = tuple(n for n in features if aside.get(n, True) is not None)
    stored = FormatCapability(columns, component_names=True, units=True, fps=True, robot_type=True, metadata_keys=meta,
                              read_columns=reads)
    return data.map(own) if aside else data, stored


def _fits(name: str, f: Feature) -> bool:
    """Returns whether lerobot can store a column of this name and feature."""
    if name in INDEX_COLUMNS:
        return name == INDEX_COLUMNS[0] and f.shape == () and np.dtype(f.dtype).kind == "f"
    if f.kind == "string" or name == "task":
        return f.kind == "string" and f.shape == ()
    return "/" not in name and len(f.shape) <= 5 and 0 not in f.shape and np.dtype(f.dtype).kind in "biuf"


def _timestamps_start_at_zero(data: Dataset) -> bool:
    """Returns whether the timestamps of all episodes start at 0, within one step."""
    most = 1 / (data.fps or SAFE_FPS)
    return all(abs(float(np.asarray(e.steps[INDEX_COLUMNS[0]])[0])) <= most for e in data)


def _from_zero(times: np.ndarray, begins: bool) -> np.ndarray:
    return (times if begins else times - times[0]).astype(np.float32)


def append(path: str | Path, dataset: Dataset, *, robot_type: str | None = None,
           images: Literal["video", "av1", "h264", "png"] = "video", threads: int | None = None,
           progress: Callable[[int], None] = lambda n_frames: None) -> None:
    """Adds episodes to a data set. Finished files are never rewritten, and info.json is replaced last.

    An append that is interrupted leaves the data set as it was. The next one removes the files that it left.

    Args:
        path: The folder. If there is none, a data set is written.
        dataset: The episodes to add. Columns of cameras may be `JournalFrames`, which are read frame by frame.
        robot_type: Name of the robot, for the first episodes. By default the name with which `create` was called.
        images: How frames are stored, as in `write`, for the first episodes.
        threads: As in `VideoWriter`.
        progress: Called with the number of frames that are written, including frames that become images.
    """
    path = Path(path)
    if not path.exists():
        _plan(dataset.features(), None, None, "png")  # refuses columns that could not be appended to
        return write(dataset, path, images=images)
    with cache.disk_errors(path), cache.locked(path / UNDERSTUDY_FOLDER / ".lock"):
        _clean(path)
        if not len(dataset):
            return
        info = read_info(path)
        if info["total_episodes"] or not (path / UNDERSTUDY_FOLDER).is_dir():
            writer = _LeRobotWriter.open(path, info)
        else:  # as `create` left it: it now gets the columns of its first episodes
            robot = robot_type or info.get("robot_type")
            writer = _LeRobotWriter.create(path, dataset.features(), dataset.fps, robot, images)
        writer.threads, writer.progress = threads, progress
        writer.add(dataset)


def create(path: str | Path, schema: Mapping[str, Feature], *, fps: float | None = None, robot_type: str | None = None,
           images: Literal["video", "av1", "h264", "png"] = "video") -> None:
    """Writes a data set without episodes, as lerobot's recorder does at its start. `append` adds the first ones."""
    with cache.disk_errors(Path(path)), whole_folder(path) as part:
        writer = _LeRobotWriter.create(part, schema, fps, robot_type, images)
        (part / "meta").mkdir()
        write_json(part / UNDERSTUDY_FOLDER / "schema.json", writer.schema())
        write_text(part / "meta" / "info.json", json.dumps(writer.plan.info, indent=4, ensure_ascii=False))


# -- what is written ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _StoragePlan:
    """Plan of how each column is stored. `columns` include `task` and `timestamp` if the data set has them."""

    columns: Mapping[str, Feature]
    info: Mapping  # info.json as it was before
    codec: str

    @property
    def fps(self) -> float:
        return self.info["fps"]

    def stored(self, name: str) -> str:
        return self.info["features"][name]["dtype"]

    @property
    def data(self) -> list[str]:
        """The columns that are stored in the data files, in order."""
        return [n for n, f in self.info["features"].items() if f["dtype"] != "video"]

    @property
    def cameras(self) -> list[str]:
        return [n for n, f in self.info["features"].items() if f["dtype"] == "video"]


def _plan(schema: Mapping[str, Feature], fps: float | None, robot_type, images: str) -> _StoragePlan:
    rate = SAFE_FPS if fps is None else fps
    if not rate > 0:
        raise UserError(f"fps must be above 0, but is {rate}", hint="give fps, the steps per second")
    rate = int(rate) if float(rate).is_integer() else float(rate)
    features = {}
    columns = {n: f for n, f in schema.items() if n not in INDEX_COLUMNS[1:]}
    for name, f in columns.items():
        if "/" in name:
            raise UserError("LeRobot needs names without '/'", where=f"column {name!r}", hint="rename the column")
        if name not in ("task", INDEX_COLUMNS[0]):
            features[name] = _column_info(name, f, rate, images)
    for name in INDEX_COLUMNS:
        features[name] = {"dtype": "float32" if name == INDEX_COLUMNS[0] else "int64", "shape": [1], "names": None}
    codec = _video_codec(features, "")
    info = {"codebase_version": "v3.0", "robot_type": robot_type, "total_episodes": 0, "total_frames": 0,
            "total_tasks": 0, "chunks_size": 1000, "data_files_size_in_mb": 100, "video_files_size_in_mb": 200,
            "fps": rate, "splits": {"train": "0:0"}, "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if codec else None, "features": features}
    return _StoragePlan(columns, info, codec)


def _column_info(name: str, f: Feature, rate: float, images: str) -> dict:
    """Returns the entry of a column in info.json."""
    if f.kind == "depth":  # without loss, in PNG of 16 bits
        return {"dtype": "image", "shape": list(f.shape), "names": ["height", "width", "channels"],
                "info": {"is_depth_map": True}}
    if f.kind == "image" and f.shape[2] in (1, 3, 4):
        size = cast(tuple[int, int, int], f.shape)
        able = [codec for c, codec in _CODECS.items() if images in ("video", codec) and video.can_encode(c, size)]
        if images in _CODECS.values() and not able:
            raise UserError(f"frames of the shape {f.shape} cannot be written as {images} here",
                            where=f"column {name!r}", hint="write them as png")
        info = {"dtype": "video" if able else "image", "shape": list(f.shape), "names": ["height", "width", "channels"]}
        if able:
            info["info"] = {
                "video.height": f.shape[0], "video.width": f.shape[1], "video.codec": able[0],
                "video.pix_fmt": "yuv420p", "video.is_depth_map": False, "video.fps": rate, "video.channels": 3,
                "has_audio": False}
        return info
    if f.kind == "string":
        return {"dtype": "string", "shape": [1], "names": None}
    if len(f.shape) > 5 or 0 in f.shape or np.dtype(f.dtype).kind not in "biuf":
        raise UserError(f"LeRobot stores numbers of 1 to 5 dimensions, not {f.dtype} {f.shape}",
                        where=f"column {name!r}", hint="leave the column out, or split it")
    return {"dtype": f.dtype, "shape": list(f.shape) or [1], "names": list(f.names) if f.names else None}


def _video_codec(features: Mapping[str, Mapping], default: str) -> str:
    """Returns the encoder of the first video column."""
    return next((c for f in features.values() if f["dtype"] == "video" for c, codec in _CODECS.items()
                 if codec == (f.get("info") or {}).get("video.codec")), default)


@dataclass(frozen=True)
class _LoadedEpisode:
    """An episode whose columns have been read."""

    length: int
    columns: dict[str, np.ndarray | JournalFrames]
    metadata: dict
    location: str


def _concatenate(pieces: list[np.ndarray]) -> np.ndarray:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _unordered(where: str) -> UserError:
    return UserError("there must be at least one step, and timestamps that increase from 0", where=where,
                     hint="leave the column timestamp out to have it made from fps")


class _LeRobotWriter:
    """Writes episodes into a data set. Its files have the suffix .part until all are complete, and info.json is
    written last."""

    def __init__(self, root: Path, plan: _StoragePlan, fps_known: bool, source: LeRobotSource | None = None,
                 next_file: Mapping[str, tuple[int, int]] | None = None, table_schema: pa.Schema | None = None):
        self.root, self.plan, self._fps_known = root, plan, fps_known
        self._source, self._table_schema = source, table_schema  # source and schema of the existing episodes
        stored_tasks = source.index.tasks if source is not None else {}
        self.tasks = {text: number for number, text in stored_tasks.items()}
        self._next_task, self._task_rows = max(stored_tasks, default=-1) + 1, list(stored_tasks.items())
        # by "data", "episodes" or camera: (chunk, file)
        self._at = dict(next_file or dict.fromkeys(("data", "episodes", *plan.cameras), (0, 0)))
        self._journal = {"episodes": plan.info["total_episodes"], "next": dict(self._at)}
        self._parts: list[str] = []  # final names of the files, in order
        self._schema = _schema(plan)
        # For numbers that rarely repeat, a dictionary takes three times as long and needs more space.
        self._repeating = [f.name for f in self._schema if f.name not in ("frame_index", "index")
                           and not pa.types.is_floating(getattr(f.type, "value_type", f.type))]
        self._dtypes = {n: np.dtype(f.dtype) for n, f in plan.columns.items() if f.kind != "string"}
        self._usual: list[str] = []  # columns of the last episode
        self._data: tuple[pq.ParquetWriter, pa.NativeFile] | None = None  # and its file
        self._videos: dict[str, video.VideoWriter] = {}
        self._filmed: dict[str, float] = {}  # length (s) of the open video so far
        self._rows: list[dict] = []  # rows of the episodes table
        self._steps = 0  # steps of all these episodes
        self._stats: list[dict] = []  # one entry for some episodes: by column and statistic, (episodes, ...)
        self._last: list[dict] = []
        self._episode_metadata: list[dict] = []
        self._grows = (root / "meta" / "info.json").exists()  # else: a new folder
        self.threads: int | None = None
        self.progress: Callable[[int], None] = lambda n_frames: None
        self._n_frames = 0

    @staticmethod
    def create(root: Path, schema, fps, robot_type, images) -> _LeRobotWriter:
        return _LeRobotWriter(root, _plan(schema, fps, robot_type, images), fps is not None)

    @staticmethod
    def open(root: Path, info: dict) -> _LeRobotWriter:
        if info["codebase_version"] != "v3.0":
            raise UserError(f"episodes can be added to LeRobot v3.0, not to {info['codebase_version']}", where=root,
                            hint="write it again first: lerobot.write(open_dataset(OLD), NEW)")
        source = LeRobotSource(root)
        tables = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
        plan = _StoragePlan(source.schema, info, _video_codec(info["features"], "libsvtav1"))
        after = {}
        for name in ("data", "episodes", *plan.cameras):
            if name == "episodes":  # its place in its own table is not everywhere
                places = [(number_sort_key(t.parent.name)[0], number_sort_key(t.stem)[0]) for t in tables]
            else:
                prefix = "data" if name == "data" else f"videos/{name}"
                read = open_parquet(tables[-1]).read(columns=[f"{prefix}/chunk_index", f"{prefix}/file_index"])
                places = list(zip(*read.to_pydict().values(), strict=True))
            after[name] = _following(max(places), info)
            while (root / _name(plan, name, after[name])).exists():
                after[name] = _following(after[name], info)
        return _LeRobotWriter(root, plan, source.metadata["fps"] is not None, source, after,
                              open_parquet(tables[-1]).schema_arrow)

    def add(self, dataset: Dataset) -> None:
        if self._grows:
            write_json(self.root / UNDERSTUDY_FOLDER / "pending.json", self._journal)
        try:
            loaded, size = [], 0
            for number, episode in enumerate(dataset.iterate_once()):
                new = self._checked(episode, len(episode), f"episode {number}")
                more = sum(column.nbytes for column in new.columns.values())
                # A long episode is not copied together with short ones.
                if loaded and size + more > _NUMBER_BYTES_AT_ONCE:
                    self._add_episodes(loaded)
                    loaded, size = [], 0
                loaded.append(new)
                size += more
                if size >= _NUMBER_BYTES_AT_ONCE:
                    self._add_episodes(loaded)
                    loaded, size = [], 0
                del new  # free it before the next one is read
            if loaded:
                self._add_episodes(loaded)
            self._close()
            self._commit()
        except BaseException:
            self._abandon()
            raise

    # -- some episodes ----------------------------------------------------------------------------------------------

    def _add_episodes(self, episodes: list[_LoadedEpisode]) -> None:
        """Adds several short episodes at once, because one call for each would take longer than their data."""
        lengths = np.array([episode.length for episode in episodes], np.int64)
        starts = np.cumsum(lengths) - lengths
        steps, first = int(lengths.sum()), self.plan.info["total_frames"] + self._steps
        number = self.plan.info["total_episodes"] + len(self._rows)
        frame = np.arange(steps) - np.repeat(starts, lengths)
        names = [n for n in episodes[0].columns if n not in ("task", INDEX_COLUMNS[0])]
        frames = {n: [episode.columns[n] for episode in episodes]
                  for n in names if self.plan.stored(n) in ("image", "video")}
        columns = {n: _concatenate([episode.columns[n][:episode.length] for episode in episodes])
                   for n in names if n not in frames}
        times = self._times(episodes, frame, starts)
        episode_tasks = [self._tasks(episode) for episode in episodes]
        columns |= {"timestamp": times.astype(np.float32), "frame_index": frame,
                    "episode_index": np.repeat(np.arange(number, number + len(episodes)), lengths),
                    "index": first + np.arange(steps),
                    "task_index": np.concatenate([index for _, index in episode_tasks])}
        rows = [{"episode_index": number + i, "tasks": tasks, "length": episode.length}
                for i, (episode, (tasks, _)) in enumerate(zip(episodes, episode_tasks, strict=True))]
        for row, place in zip(rows, self._write_data(columns, frames, lengths, first), strict=True):
            row |= place
        for i, (row, at, n) in enumerate(zip(rows, starts, lengths, strict=True)):
            films = {camera: frames[camera][i] for camera in self.plan.cameras}
            row |= self._write_videos(row["episode_index"], films, times[at: at + n])
        self._append_statistics(columns, frames, lengths)
        self._rows += rows
        self._steps += steps
        self._append_metadata(episodes, number)

    def _times(self, episodes: list[_LoadedEpisode], frame: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Returns the time of each step in its episode, in s."""
        times = frame / self.plan.fps
        for episode, at in zip(episodes, starts, strict=True):
            if INDEX_COLUMNS[0] in episode.columns:
                times[at: at + episode.length] = episode.columns[INDEX_COLUMNS[0]][:episode.length]
        is_unordered = np.diff(times, prepend=-np.inf) <= 0
        is_unordered[starts] = abs(times[starts]) > 1 / self.plan.fps
        if is_unordered.any():
            raise _unordered(episodes[int(np.searchsorted(starts, np.argmax(is_unordered), side="right")) - 1].location)
        return times

    def _append_statistics(self, columns: dict[str, np.ndarray], frames: dict[str, list], lengths: np.ndarray) -> None:
        statistics = episode_statistics({n: columns[n] for n, f in self.plan.info["features"].items() if n in columns
                                and f["dtype"] != "string"}, lengths)
        for name, each in frames.items():
            of_episodes = [image_statistics(c, int(n)) for c, n in zip(each, lengths, strict=True)]
            statistics[name] = stack_statistics(of_episodes)
        self._stats.append({n: statistics[n] for n in self.plan.info["features"] if n in statistics})

    def _append_metadata(self, episodes: list[_LoadedEpisode], number: int) -> None:
        """Stores the metadata and the last observations of the episodes from number `number` on."""
        for i, episode in enumerate(episodes, number):
            last = {n: self._last_value(n, c[episode.length:episode.length + 1][0]) for n, c in episode.columns.items()
                    if len(c) > episode.length and n not in ("task", *INDEX_COLUMNS)}
            if last:
                self._last.append({"episode_index": i, **last})
            self._episode_metadata.append({"episode_index": i, "facts": episode.metadata})

    def _tasks(self, episode: _LoadedEpisode) -> tuple[list[str], np.ndarray]:
        """Returns the tasks of an episode, and the number of the task of each step."""
        texts = episode.columns.get("task")
        if texts is None:  # perhaps the metadata has it, for the whole episode
            texts = np.broadcast_to(str(episode.metadata.get("task") or ""), (1,))
        assert isinstance(texts, np.ndarray)
        if texts.strides == (0,):
            distinct = [str(texts[0])]
        else:  # in the order of first use, so that reading and writing again gives the same numbers
            texts = [str(task) for task in texts[:episode.length]]
            distinct = list(dict.fromkeys(texts))
        for task in distinct:
            if task not in self.tasks:
                self.tasks[task] = self._next_task
                self._task_rows.append((self._next_task, task))
                self._next_task += 1
        if len(distinct) == 1:
            return distinct, np.full(episode.length, self.tasks[distinct[0]], np.int64)
        return distinct, np.array([self.tasks[task] for task in texts], np.int64)

    def _checked(self, episode: Episode, length: int, where: str) -> _LoadedEpisode:
        names = [n for n in episode.steps if n not in INDEX_COLUMNS[1:]]
        if names != self._usual:
            for name in dict.fromkeys([*self.plan.columns, *names]):
                if (name in names) != (name in self.plan.columns) and name not in ("task", "timestamp"):
                    raise UserError(f"the columns are {', '.join(names)} instead of {', '.join(self.plan.columns)}",
                                    where=f"{where}, column {name!r}", hint="give all episodes the same columns")
            self._usual = names
        columns = {}
        for name in names:
            if name not in self.plan.columns:
                continue  # task or timestamp, which this data set makes itself
            feature, column = self.plan.columns[name], episode.steps[name]
            if not isinstance(column, JournalFrames):
                column = np.asarray(column)
            if (column.dtype, column.shape[1:]) != (self._dtypes.get(name), feature.shape):
                column_feature = Feature.from_array(column)
                if (column_feature.dtype, column_feature.shape) != (feature.dtype, feature.shape):
                    raise UserError(f"a step is {column_feature.dtype} {column_feature.shape} instead of "
                                    f"{feature.dtype} {feature.shape}", where=f"{where}, column {name!r}",
                                    hint="give all episodes the same columns")
            if len(column) not in (length, length + 1):
                raise UserError(f"there are {len(column)} rows instead of {length}, or one more",
                                where=f"{where}, column {name!r}", hint="give each step its row")
            columns[name] = column
        if length < 1:
            raise _unordered(where)
        return _LoadedEpisode(length, columns, dict(episode.metadata), where)

    def _write_data(self, columns, frames, lengths, first) -> list[dict]:
        """Writes the row groups of each episode, and returns the position of each episode in the data files."""
        at, places = 0, []
        for length, tables in zip(lengths.tolist(), self._row_groups(columns, frames, lengths), strict=True):
            if self._data is None:
                sink = pa.OSFile(str(self._part("data")), "wb")
                self._data = pq.ParquetWriter(sink, self._schema, use_dictionary=self._repeating), sink
            writer, sink = self._data
            for table in tables:
                writer.write_table(table, row_group_size=len(table))
            chunk, file = self._at["data"]
            places.append({"data/chunk_index": chunk, "data/file_index": file, "dataset_from_index": first + at,
                           "dataset_to_index": first + at + length})
            at += length
            if sink.tell() >= self.plan.info["data_files_size_in_mb"] * 2**20:  # the next begins a new file
                self._end_data()
                self._at["data"] = _following(self._at["data"], self.plan.info)
        return places

    def _row_groups(self, columns, frames, lengths) -> Iterator[Iterator[pa.Table]]:
        """Yields the tables of each episode: one, or several if it has images, so that few images are in memory."""
        starts = (np.cumsum(lengths) - lengths).tolist()
        images = [n for n in frames if self.plan.stored(n) == "image"]
        if not images:
            table = _table(self.plan, self._schema, columns)
            yield from (iter([table.slice(at, n)]) for at, n in zip(starts, lengths.tolist(), strict=True))
            return
        step = max(1, _FRAME_BYTES_AT_ONCE // sum(frames[n][0].nbytes // len(frames[n][0]) for n in images))

        def pieces(episode: int, at: int, length: int) -> Iterator[pa.Table]:
            for begin in range(0, length, step):
                stop = min(begin + step, length)
                numbers = {n: c[at + begin: at + stop] for n, c in columns.items()}
                pictures = {n: frames[n][episode][begin:stop] for n in images}
                yield _table(self.plan, self._schema, numbers | pictures)
                self._report(len(images) * (stop - begin))
        for episode, (at, length) in enumerate(zip(starts, lengths.tolist(), strict=True)):
            yield pieces(episode, at, length)

    def _end_data(self) -> None:
        for file in self._data or ():
            file.close()
        self._data = None

    def _write_videos(self, number, films, times) -> dict:
        """Writes the frames of an episode by camera. The cameras take turns, so that their encoders work together."""
        for camera, frames in films.items():
            if camera not in self._videos:
                self._videos[camera] = video.VideoWriter(self._part(camera), self.plan.codec, frames.shape[1:],
                                                         self.plan.fps, self.threads)
                self._filmed[camera] = 0.0
        step = max(1, _FRAME_BYTES_AT_ONCE // max(sum(f.nbytes // len(f) for f in films.values()), 1))
        for first in range(0, len(times), step) if films else ():
            some = times[first: first + step]
            pieces = {camera: frames[first: first + len(some)] for camera, frames in films.items()}
            for i, time in enumerate(some):
                for camera, piece in pieces.items():
                    self._videos[camera].add(piece[i:i + 1], [self._filmed[camera] + time])
            self._report(len(films) * len(some))
        return {key: value for camera in films for key, value in self._end_of_film(camera, times).items()}

    def _end_of_film(self, camera, times) -> dict:
        """Returns the position of an episode in its video file, and closes the file if it is large."""
        begin = self._filmed[camera]
        self._filmed[camera] = begin + max(len(times) / self.plan.fps, float(times[-1]) + 1 / self.plan.fps)
        chunk, file = self._at[camera]
        if self._videos[camera].bytes >= self.plan.info["video_files_size_in_mb"] * 2**20:
            self._videos.pop(camera).close()
            self._at[camera] = _following(self._at[camera], self.plan.info)
        at = f"videos/{camera}"
        return {f"{at}/chunk_index": chunk, f"{at}/file_index": file, f"{at}/from_timestamp": begin,
                f"{at}/to_timestamp": self._filmed[camera]}

    def _report(self, n_frames: int) -> None:
        self._n_frames += n_frames
        self.progress(self._n_frames)

    def _last_value(self, name, value):
        if self.plan.stored(name) in ("image", "video"):
            return {"bytes": video.encode_png(value), "path": None}
        return str(value) if self.plan.columns[name].kind == "string" else value.tolist()

    # -- files ------------------------------------------------------------------------------------------------------

    def _part(self, what: str) -> Path:
        name = _name(self.plan, what, self._at[what])
        self._parts.append(name)
        path = self.root / f"{name}.part"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _close(self) -> None:
        self._end_data()
        for writer in self._videos.values():
            writer.close()
        chunk, file = self._at["episodes"]
        for row in self._rows:
            row.update({"meta/episodes/chunk_index": chunk, "meta/episodes/file_index": file})
        table = _episodes_table(self._rows, self._stats)
        if self._table_schema is not None:  # lerobot reads all tables as one: they have the same columns
            for f in self._table_schema:
                if f.name not in table.column_names:  # a column of other software
                    table = table.append_column(f, pa.nulls(len(table), f.type))
            table = table.select(self._table_schema.names)
        pq.write_table(table, self._part("episodes").absolute(), use_dictionary=["tasks"])

    def _commit(self) -> None:
        info, root = dict(self.plan.info), self.root
        total = info["total_episodes"] + len(self._rows)
        stats = self._statistics()
        for name in self._parts if self._grows else ():  # a new folder is synced as a whole before it has its name
            sync_file(root / f"{name}.part")
        _write_tasks(root / "meta" / "tasks.parquet", self._task_rows)
        self._write_understudy_folder()
        write_json(root / "meta" / "stats.json", plain_lists(stats))
        for name in self._parts:
            os.replace(root / f"{name}.part", root / name)
        for name in self._parts if self._grows else ():  # its folders may be new as well
            for folder in (root / name).relative_to(root).parents:
                sync_folder(root / folder)
        info.update(total_episodes=total, total_frames=info["total_frames"] + self._steps,
                    total_tasks=len(self._task_rows), splits={**info.get("splits", {}), "train": f"0:{total}"})
        write_text(root / "meta" / "info.json", json.dumps(info, indent=4, ensure_ascii=False))
        (root / UNDERSTUDY_FOLDER / "pending.json").unlink(missing_ok=True)

    def _statistics(self) -> dict[str, dict[str, np.ndarray]]:
        """Returns the statistics of all episodes: exact ones of numbers, and camera statistics from sampled frames."""
        files: list[tuple[Path, np.ndarray | None]] = []
        if self._source is not None:
            files += self._source.rows_by_file()
        files += [(self.root / f"{name}.part", None) for name in self._parts if name.endswith(".parquet")
                  and not name.startswith("meta/")]
        cameras = [n for n, f in self.plan.info["features"].items() if f["dtype"] in ("image", "video")
                   and n in self.plan.columns]
        so_far = [] if self._source is None else image_statistics_so_far(self._source, cameras)
        new = [{n: s for n, s in part.items() if n in cameras} for part in self._stats]
        stats = {**number_statistics(files, self.plan.info["features"]), **aggregate_statistics([*so_far, *new])}
        return {n: stats[n] for n in self.plan.info["features"] if n in stats}

    def _write_understudy_folder(self) -> None:
        folder, before = self.root / UNDERSTUDY_FOLDER, self.plan.info["total_episodes"]
        _write_last(folder / "last.parquet", self._last, self.plan)
        _write_metadata(folder / "episodes.jsonl", self._episode_metadata, before)
        if not before or not (folder / "schema.json").exists():
            write_json(folder / "schema.json", self.schema())

    def schema(self) -> dict:
        """Returns the contents of schema.json, which describes the columns."""
        columns = {n: asdict(f) for n, f in self.plan.columns.items()}
        return {"columns": columns, "hidden": [n for n in ("task", "timestamp") if n not in columns],
                **({} if self._fps_known else {"fps": None})}

    def _abandon(self) -> None:
        self._end_data()
        for writer in self._videos.values():
            writer.abort()
        if self._grows:
            _clean(self.root)


def _name(plan: _StoragePlan, what: str, place: tuple[int, int]) -> str:
    patterns = {"data": plan.info["data_path"], "episodes": EPISODES_PATH}
    pattern = patterns.get(what, plan.info.get("video_path") or VIDEO_PATH)
    return fill_pattern(pattern, video_key=what, chunk_index=place[0], file_index=place[1])


def _following(place: tuple[int, int], info: Mapping) -> tuple[int, int]:
    chunk, file = place
    return (chunk, file + 1) if file + 1 < info["chunks_size"] else (chunk + 1, 0)


def _clean(root: Path) -> None:
    """Removes the files of an interrupted append, which ended before info.json was replaced."""
    # replacements never finished
    for part in (*(root / "meta").glob(".*.part"), *(root / UNDERSTUDY_FOLDER).glob(".*.part")):
        part.unlink()
    journal = root / UNDERSTUDY_FOLDER / "pending.json"
    if not journal.exists():
        return
    pending, info = read_json(journal), read_info(root)
    if info["total_episodes"] == pending["episodes"]:
        plan = _StoragePlan({}, info, "")
        for what, place in pending["next"].items():
            leftover_files, place = [], tuple(place)
            while True:
                name = root / _name(plan, what, place)
                existing = [p for p in (name, name.with_name(f"{name.name}.part")) if p.exists()]
                if not existing:
                    break
                leftover_files += existing
                place = _following(place, info)
            for file in reversed(leftover_files):  # so that an interruption leaves no gap in the numbers
                file.unlink()
    journal.unlink()


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    yield part
    sync_file(part)
    os.replace(part, path)
    sync_folder(path.parent)


def _write_tasks(path: Path, tasks: list[tuple[int, str]]) -> None:
    described = [{"name": n, "field_name": n, "pandas_type": kind, "numpy_type": kind if kind == "int64" else "object",
                  "metadata": None} for n, kind in (("task_index", "int64"), ("task", "unicode"))]
    pandas = {"index_columns": ["task"], "columns": described, "column_indexes": [
        {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object",
         "metadata": {"encoding": "UTF-8"}}], "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0"}
    numbers, texts = zip(*tasks, strict=True)
    table = pa.table({"task_index": pa.array(numbers, pa.int64()), "task": pa.array(texts)})
    with _replacing(path) as part:
        pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), part.absolute())


def _write_last(path: Path, rows: list[dict], plan: _StoragePlan) -> None:
    old = []
    if path.exists():
        old = [r for r in open_parquet(path).read().to_pylist() if r["episode_index"] < plan.info["total_episodes"]]
    if not rows and not old:
        return
    names = [n for n in plan.columns if any(n in r for r in (*rows, *old))]
    types = {n: _arrow_type(plan.stored(n), len(plan.columns[n].shape)) for n in names}
    table = pa.table({n: pa.array([r.get(n) for r in (*old, *rows)], kind)
                      for n, kind in {"episode_index": pa.int64(), **types}.items()})
    with _replacing(path) as part:
        pq.write_table(table, part.absolute())


def _write_metadata(path: Path, rows: list[dict], before: int) -> None:
    old = [r for r in read_json_lines(path) if r["episode_index"] < before] if path.exists() else []
    if any(r["facts"] for r in (*old, *rows)):
        write_text(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in (*old, *rows)))


# -- Arrow ----------------------------------------------------------------------------------------------------------


def _table(plan: _StoragePlan, schema: pa.Schema, columns: Mapping[str, np.ndarray]) -> pa.Table:
    frame = columns["frame_index"]
    return pa.table({n: _arrow(columns[n], plan.stored(n), frame) for n in schema.names}, schema=schema)


def _arrow(column: np.ndarray, stored: str, frame: np.ndarray) -> pa.Array:
    """Converts a column to an Arrow array. `frame` is the number of each row in its episode, for names of images."""
    if stored == "image":
        rows = [{"bytes": video.encode_png(image), "path": f"frame-{i:06d}.png"}
                for i, image in zip(frame.tolist(), column, strict=True)]
        return pa.array(rows, _IMAGE)
    if stored == "string":
        return pa.array(column.tolist(), pa.string())
    shape = column.shape[1:]
    values = pa.array(np.ascontiguousarray(column).reshape(-1))
    if shape in ((), (1,)):
        return values
    return pa.FixedSizeListArray.from_arrays(values, shape[0]) if len(shape) == 1 else _lists(column)


def _lists(column: np.ndarray) -> pa.Array:
    """Converts a column (rows, *shape) to nested lists."""
    values = pa.array(np.ascontiguousarray(column).reshape(-1))
    for n in reversed(column.shape[1:]):
        values = pa.ListArray.from_arrays(pa.array(np.arange(0, len(values) + 1, n), pa.int32()), values)
    return values


def _arrow_type(dtype: str, depth: int) -> pa.DataType:
    """Returns the Arrow type of a column that is stored as `dtype`, in lists nested `depth` times."""
    if dtype in ("image", "video"):
        return _IMAGE
    kind = pa.string() if dtype == "string" else pa.from_numpy_dtype(np.dtype(dtype))
    for _ in range(depth):
        kind = pa.list_(kind)
    return kind


def _schema(plan: _StoragePlan) -> pa.Schema:
    """Builds the Arrow schema, with the metadata by which Hugging Face datasets recognizes images and arrays."""
    fields, described = [], {}
    for name in plan.data:
        f = plan.info["features"][name]
        dtype, shape, extension = f["dtype"], list(f["shape"]), None
        depth = 0 if shape == [1] else len(shape)
        kind, described[name] = _arrow_type(dtype, depth), {"dtype": dtype, "_type": "Value"}
        if dtype == "image":
            described[name] = {"_type": "Image"}
        elif depth == 1:
            kind = pa.list_(kind.value_type, shape[0])
            described[name] = {"feature": described[name], "length": shape[0], "_type": "Sequence"}
        elif depth > 1:
            described[name] = {"shape": shape, "dtype": dtype, "_type": f"Array{depth}D"}
            extension = {"ARROW:extension:name": f"datasets.features.features.Array{depth}DExtensionType",
                         "ARROW:extension:metadata": json.dumps([shape, dtype])}
        fields.append(pa.field(name, kind, metadata=extension))
    return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": described}})})


def _episodes_table(rows: list[dict], stats: list[dict]) -> pa.Table:
    columns = {}
    for name in rows[0]:
        if name.startswith("meta/"):
            continue
        kind = {"tasks": pa.list_(pa.string())}.get(name, pa.float64() if name.endswith("_timestamp") else pa.int64())
        columns[name] = pa.array([r[name] for r in rows], kind)
    for name, statistics in pool_statistics(stats).items():
        for statistic, values in statistics.items():
            columns[f"stats/{name}/{statistic}"] = _lists(values)
    for name in ("meta/episodes/chunk_index", "meta/episodes/file_index"):
        columns[name] = pa.array([r[name] for r in rows], pa.int64())
    return pa.table(columns)

"""Training from shards that are too large for a disk: tar files (webdataset) and parquet, with shuffling in bounded
memory.

    stream = ShardStream("s3://bucket/demos-{000..099}.tar", buffer_size=50_000)
    some = stream.first_episodes(50)
    policy = Policy(config, some.features()).fit_statistics(some)
    windows = stream.windows(policy.windows)
    fit(learner, lambda step: windows.batch(128, step, seed=0), steps=100_000)

Shuffling has two levels (CorgiPile, Xu et al. 2022). Chunks of shards come in random order, another one in each epoch.
As many as fit into the buffer are in memory together, and their windows are drawn in random order, each once. The
windows of batch number `step` depend only on (step, seed, size, buffer size) and the shards, so there is no position to
save. A stopped run continues at its step, after reading one buffer.
"""

from __future__ import annotations

import copy
import io
import json
import re
import tarfile
import threading
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ...core import Batch, DataWarning, UserError
from ...hints import command_line
from .. import cache, video
from ..batch_sampler import BatchSampler
from ..episode import Dataset, Episode, episode_starts
from ..formats import remote
from ..formats.lerobot_read import read_info, read_tasks
from ..formats.parts import arrow
from ..formats.parts.file_kinds import is_lerobot
from ..formats.parts.links import check_links
from ..formats.parts.npz_arrays import npy_header
from ..sources import batch_ranges
from ..window import Windows
from .view_file import is_view

_SUFFIXES = (".tar", ".parquet")
_CHUNKS_PER_BUFFER = 4  # smallest number of chunks per buffer: fewer would hardly shuffle
_SHUFFLE_STREAM, _SAMPLE_STREAM = 1, 2  # streams of random numbers


@dataclass(frozen=True)
class _ShardChunk:
    """Consecutive episodes of a shard. `first_step` numbers their first step, counted over all shards."""

    shard: int
    episodes: tuple[int, ...]
    steps: int
    first_step: int


class ShardStream:
    """Stream of episodes from shards (large files), in the order of the shards' names.

    The position of each episode is found first: the columns `episode_index`, or the headers of the tar files, are read
    once.

    Args:
        urls: One or several tar or parquet files (local, or any URL that fsspec reads), a folder of them, or a name
            with {000..099} in it. A sample of a tar file is an episode: KEY.npz with its columns, or a KEY.COLUMN.npy
            for each column, and KEY.json with its metadata. In parquet files, rows of an episode follow each other with
            the same `episode_index`, as in LeRobot v3.0.
        buffer_size: Number of steps in memory at the same time. A longer episode is read alone.
    """

    def __init__(self, urls: str | Path | Iterable[str | Path], buffer_size: int = 65_536):
        if buffer_size < 1:
            raise UserError(f"the buffer needs at least one step, not {buffer_size}", where="buffer_size",
                            hint="such as 65536")
        addresses = [urls] if isinstance(urls, (str, Path)) else list(urls)
        self.buffer_size = buffer_size
        self.shards = tuple(
            _open_shard(at) for a in addresses for name in _expand_braces(str(a)) for at in _shard_urls(name)
        )
        if not self.shards:
            raise UserError("there are no shards that end in .tar or .parquet", where=addresses[0] if addresses else "",
                            hint="give the files or their folder")
        if cameras := sorted({c for folder in {_lerobot_folder(s.at) for s in self.shards} if folder is not None
                              for c, f in read_info(folder)["features"].items() if f["dtype"] == "video"}):
            warnings.warn(f"{self.shards[0].at}: a stream has no videos, so there is no {', '.join(cameras)}. Read the "
                          "data without a buffer size, or write PNG: " + command_line("convert", "DATA", "DST"),
                          DataWarning, stacklevel=2)
        self.chunks: list[_ShardChunk] = []
        begin = 0
        for number, shard in enumerate(self.shards):
            for first, stop in batch_ranges(shard.lengths, max(1, buffer_size // _CHUNKS_PER_BUFFER)):
                steps = int(shard.lengths[first:stop].sum())
                self.chunks.append(_ShardChunk(number, tuple(range(first, stop)), steps, begin))
                begin += steps
        self.steps = begin
        if not begin:
            raise UserError("the shards have no episodes", where=self.shards[0].at,
                            hint="take shards with episodes in them")

    def __len__(self) -> int:
        """Number of episodes."""
        return sum(len(s.lengths) for s in self.shards)

    def first_episodes(self, n_episodes: int) -> Dataset:
        """Reads the first `n_episodes` episodes, or all, into memory, to find features and statistics."""
        episodes: list[Episode] = []
        for piece in self.chunks:
            if len(episodes) >= n_episodes:
                break
            episodes += self.shards[piece.shard].read(piece.episodes[: n_episodes - len(episodes)])
        return Dataset(episodes, {"format": "stream", "path": self.shards[0].at})

    @property
    def key(self) -> str:
        """Digest of the names of the shards and the lengths of their episodes, which identifies the stream."""
        return cache.json_digest("stream", *([Path(s.at).name, s.lengths.tolist()] for s in self.shards))

    def exclude(self, episodes: Collection[int]) -> ShardStream:
        """Returns a stream without some episodes."""
        excluded, less = set(episodes), copy.copy(self)
        first = np.cumsum([0, *(len(s.lengths) for s in self.shards)])
        less.chunks = []
        for piece in self.chunks:
            begin, lengths = piece.first_step, self.shards[piece.shard].lengths
            for out, run in groupby(piece.episodes, lambda e, first=first[piece.shard]: first + e in excluded):
                episodes = tuple(run)
                steps = int(lengths[list(episodes)].sum())
                if not out:
                    less.chunks.append(_ShardChunk(piece.shard, episodes, steps, begin))
                begin += steps
        less.steps = sum(p.steps for p in less.chunks)
        return less

    def windows(self, make_windows: Callable[[Dataset], Windows]) -> StreamWindows:
        """Returns training windows over the stream. `make_windows` makes windows over the episodes in the buffer."""
        return StreamWindows(self, make_windows)


class StreamWindows(BatchSampler):
    """Windows over a stream (see `ShardStream.windows`). As for `Windows`, a batch is a function of its arguments."""

    def __init__(self, stream: ShardStream, make_windows: Callable[[Dataset], Windows]):
        self.stream, self.make_windows = stream, make_windows
        self._lock = threading.Lock()
        self._loaded_key: tuple[Any, Any] = None, None  # the buffer in memory, and the result of `_load`
        self._previous: tuple[Any, Any] = None, None  # the buffers of the previous epoch
        self._chunk_ends: dict[tuple[int, int], list[int]] = {}  # by (size, seed): batches up to the end of each epoch

    def __len__(self) -> int:
        """Number of windows: one for each step."""
        return self.stream.steps

    def batch(self, size: int, step: int, seed: int = 0, rows: slice = slice(None)) -> Batch:
        """Returns one batch: see `BatchSampler.batch`.

        An epoch has each window once, except for the fewer than `size` windows that remain of a buffer. A buffer with
        fewer than `size` windows gives one batch, with some windows twice. extra["index"] counts the steps of all
        shards.
        """
        with self._lock:  # a prefetching thread may call it too
            epoch, group, place = self._locate_step(size, step, seed)
            windows, offset, begin = self._load((epoch, group, seed), self._buffers(epoch, seed)[group])
        order = _rng(_SAMPLE_STREAM, seed, epoch, group).permutation(len(windows))
        chosen = np.resize(order, max(size, len(order)))[place * size: (place + 1) * size]
        rng = _rng(_SAMPLE_STREAM, seed, epoch, group, place)
        goals = windows.window.goals  # drawn for all rows in order
        batch = windows.gather(chosen, rng).select_rows(rows) if goals else windows.gather(chosen[rows], rng)
        which = np.searchsorted(offset, chosen[rows], side="right") - 1
        index = torch.from_numpy((begin[which] + chosen[rows] - offset[which])[:, None])
        return batch.replace(extra={**batch.extra, "index": index})

    def _locate_step(self, size: int, step: int, seed: int) -> tuple[int, int, int]:
        """Returns (epoch, buffer in the epoch, batch in the buffer) of a training step."""
        ends = self._chunk_ends.setdefault((size, seed), [])
        while not ends or ends[-1] <= step:
            batches = sum(self._batches_per_buffer(len(ends), size, seed))
            ends.append((ends[-1] if ends else 0) + batches)
        epoch = int(np.searchsorted(ends, step, side="right"))
        inside = step - (ends[epoch - 1] if epoch else 0)
        until = np.cumsum(self._batches_per_buffer(epoch, size, seed))
        group = int(np.searchsorted(until, inside, side="right"))
        return epoch, group, inside - (int(until[group - 1]) if group else 0)

    def _batches_per_buffer(self, epoch: int, size: int, seed: int) -> list[int]:
        pieces = self.stream.chunks
        return [max(1, sum(pieces[i].steps for i in group) // size) for group in self._buffers(epoch, seed)]

    def _buffers(self, epoch: int, seed: int) -> list[list[int]]:
        """Returns the chunks that are in each shuffling buffer of an epoch."""
        if self._previous[0] != (epoch, seed):
            groups, buffer_steps = [], self.stream.buffer_size + 1
            for i in _rng(_SHUFFLE_STREAM, seed, epoch).permutation(len(self.stream.chunks)).tolist():
                steps = self.stream.chunks[i].steps
                if buffer_steps + steps > self.stream.buffer_size:
                    groups.append([])
                    buffer_steps = 0
                groups[-1].append(i)
                buffer_steps += steps
            self._previous = (epoch, seed), groups
        return self._previous[1]

    def _load(self, key, numbers: list[int]) -> tuple[Windows, np.ndarray, np.ndarray]:
        """Loads the windows of some chunks. Also returns where each chunk starts, among them and in all shards."""
        if self._loaded_key[0] != key:
            self._loaded_key = None, None  # free the memory before anything new is loaded
            pieces = [self.stream.chunks[i] for i in sorted(numbers)]
            episodes = [e for p in pieces for e in self.stream.shards[p.shard].read(p.episodes)]
            windows = self.make_windows(Dataset(episodes, {"path": self.stream.shards[pieces[0].shard].at}))
            steps = np.array([p.steps for p in pieces], np.int64)
            if len(windows) != steps.sum():
                raise UserError(f"the shards had {steps.sum()} steps before, but have {len(windows)} now",
                                where=self.stream.shards[pieces[0].shard].at,
                                hint="do not change shards while they are in use")
            first_steps = np.array([p.first_step for p in pieces], np.int64)
            self._loaded_key = key, (windows, episode_starts(steps), first_steps)
        return self._loaded_key[1]


def _rng(*key: int) -> np.random.Generator:
    return np.random.default_rng([k % 2**64 for k in key])


# -- addresses of shards ---------------------------------------------------------------------------------------------


def _expand_braces(text: str) -> list[str]:
    """Expands {000..012} in a file name to all names."""
    parts = re.split(r"\{(\d+)\.\.(\d+)\}", text)
    if len(parts) == 1:
        return [text]
    ranges = [[str(i).zfill(len(a)) for i in range(int(a), int(b) + 1)]
              for a, b in zip(parts[1::3], parts[2::3], strict=True)]
    return ["".join(x for pair in zip(parts[::3], (*chosen, ""), strict=True) for x in pair)
            for chosen in product(*ranges)]


def _shard_urls(name: str) -> list[str]:
    """Returns the addresses of the shards at an address: the file itself, or the contents of a folder."""
    at = remote.url_of(name)
    if at is None or at.startswith("file://"):
        path = Path(name).expanduser() if at is None else remote.local_path(name)
        if not path.exists():
            raise UserError("there is no shard and no folder here", where=path, hint="check the path")
        if is_view(path):
            raise UserError("a view is not a shard: its operations need all of its data", where=path,
                            hint="write it out first: " + command_line("view", "materialize", path, "--out", "DST"))
        check_links(path)
        if is_lerobot(path):  # a LeRobot data set, where tables are next to the data
            path = path / "data"
        return [str(p) for p in sorted(path.rglob("*")) if p.suffix in _SUFFIXES and p.is_file()] if path.is_dir() \
            else [str(path)]
    if at.endswith(_SUFFIXES):
        return [at]
    with remote.remote_errors(at):
        fs, place = remote.open_url(at)
        return [fs.unstrip_protocol(f) for f in sorted(fs.find(place)) if f.endswith(_SUFFIXES)]


def _open_seekable(at: str):
    """Opens a file for reading so that it can seek."""
    if remote.url_of(at) is None:
        return open(at, "rb")
    fs, place = remote.open_url(at)
    return fs.open(place, "rb")


def _open_shard(at: str) -> _Shard:
    if not at.endswith(_SUFFIXES):
        raise UserError("a shard is a .tar or a .parquet file", where=at,
                        hint="leave out the buffer size: other formats stay on the disk, and only batches are read. To "
                             "make shards: " + command_line("convert", at, "DST") + ", which writes parquet")
    with _shard_errors(at):
        return _TarShard(at) if at.endswith(".tar") else _ParquetShard(at)


@contextmanager
def _shard_errors(at: str) -> Iterator[None]:
    """Turns every error about a shard into a UserError. A context manager."""
    try:
        with remote.remote_errors(at) if remote.url_of(at) else nullcontext():
            yield
    except UserError:
        raise
    except (tarfile.TarError, zipfile.BadZipFile, pa.ArrowException, OSError, ValueError, EOFError) as error:
        raise UserError(f"the shard cannot be read ({type(error).__name__}: "
                        f"{(str(error).splitlines() or [''])[0][:160]})", where=at,
                        hint="restore it from a copy, or leave it out") from None


def _lerobot_folder(at: str) -> Path | None:
    """Returns the LeRobot data set on this disk that a file of data/chunk-000/ belongs to, if any."""
    folder = None if remote.url_of(at) else Path(at).absolute().parents[2:3]
    return folder[0] if folder and is_lerobot(folder[0]) else None


class _Shard(ABC):
    """Base class of shards: files with several episodes."""

    at: str  # path or URL
    lengths: np.ndarray  # steps of each episode, (E,) int64

    @abstractmethod
    def read(self, episodes: Iterable[int]) -> list[Episode]:
        """Reads consecutive episodes into memory."""


class _TarShard(_Shard):
    """Shard that is a tar file with one sample per episode: files with equal names up to the first dot (webdataset)."""

    def __init__(self, at: str):
        self.at, samples = at, {}
        with _open_seekable(at) as handle, tarfile.open(fileobj=handle, mode="r:") as archive:
            for member in archive:
                folder, _, file = member.name.rpartition("/")
                key, dot, suffix = file.partition(".")
                if member.isfile() and dot and key:
                    samples.setdefault(f"{folder}/{key}", {})[suffix] = member.offset_data, member.size
            self._samples = [files for files in samples.values() if any(n.endswith(("npy", "npz")) for n in files)]
            self.lengths = np.array([self._episode_length(handle, files) for files in self._samples], np.int64)

    def _episode_length(self, handle, files) -> int:
        """Returns the length of an episode: the length of the action, which has one row per step."""
        if "action.npy" in files:
            handle.seek(files["action.npy"][0])
            return int(npy_header(handle)[0][0])
        columns = _read_columns(handle, files)
        if "action" not in columns:
            raise UserError(f"there is no column 'action', only {', '.join(columns)}", where=self.at,
                            hint="store each sample as KEY.npz or KEY.COLUMN.npy, with a column action")
        return len(columns["action"])

    def read(self, episodes):
        with _shard_errors(self.at), _open_seekable(self.at) as handle:
            return [self._episode(handle, i) for i in episodes]

    def _episode(self, handle, number) -> Episode:
        files = self._samples[number]
        columns = _read_columns(handle, files)
        metadata = json.loads(_read_bytes(handle, files["json"])) if "json" in files else {}
        length = int(self.lengths[number])
        for name, column in columns.items():
            if len(column) not in (length, length + 1):
                raise UserError(f"there are {len(column)} rows, but action has {length} (one more is allowed)",
                                where=f"{self.at}, sample {number}, {name}", hint="store a row for each step")
        return Episode(columns, metadata if isinstance(metadata, dict) else {}, length)


def _read_columns(handle, files: Mapping[str, tuple[int, int]]) -> dict[str, np.ndarray]:
    out = {}
    for name, place in files.items():
        if name == "npz":
            with np.load(io.BytesIO(_read_bytes(handle, place)), allow_pickle=False) as arrays:
                out.update({k: arrays[k] for k in arrays.files})
        elif name.endswith(".npy"):
            out[name[:-4]] = np.load(io.BytesIO(_read_bytes(handle, place)), allow_pickle=False)
    return out


def _read_bytes(handle, place: tuple[int, int]) -> bytes:
    handle.seek(place[0])
    data = handle.read(place[1])
    if len(data) != place[1]:
        raise EOFError(f"{place[1]} bytes were to come, {len(data)} came")
    return data


def _open_parquet(handle) -> pq.ParquetFile:
    """Opens a parquet file without prefetching. Prefetching threads can crash the interpreter at exit."""
    return pq.ParquetFile(handle, pre_buffer=False)


class _ParquetShard(_Shard):
    """Shard that is a parquet file in which the rows of an episode follow each other."""

    def __init__(self, at: str):
        self.at = at
        with _open_seekable(at) as handle:
            source = _open_parquet(handle)
            if "episode_index" not in source.schema_arrow.names:
                raise UserError(f"there is no column episode_index, only {', '.join(source.schema_arrow.names)}",
                                where=at, hint="store the episode of each row")
            folder = _lerobot_folder(at)
            self._tasks = {} if folder is None or "task_index" not in source.schema_arrow.names else read_tasks(folder)
            numbers = source.read(columns=["episode_index"], use_threads=False)["episode_index"].to_numpy()
            self._groups = np.cumsum([0, *(source.metadata.row_group(i).num_rows
                                           for i in range(source.metadata.num_row_groups))])
        edges = np.flatnonzero(np.diff(numbers)) + 1
        self._begin = np.concatenate([[0], edges]) if len(numbers) else np.empty(0, np.int64)
        self.lengths = np.diff(np.append(self._begin, len(numbers))).astype(np.int64)
        if len(np.unique(numbers)) != len(self._begin):
            raise UserError("the rows of an episode do not follow each other", where=at,
                            hint="sort the rows by episode_index and frame_index")

    def read(self, episodes):
        numbers = list(episodes)
        if not numbers:
            return []
        first, last = int(self._begin[numbers[0]]), int(self._begin[numbers[-1]] + self.lengths[numbers[-1]])
        with _shard_errors(self.at):
            with _open_seekable(self.at) as handle:
                groups = [i for i in range(len(self._groups) - 1)
                          if self._groups[i] < last and self._groups[i + 1] > first]
                table = _open_parquet(handle).read_row_groups(groups, use_threads=False)
            table = table.slice(first - int(self._groups[groups[0]]), last - first)
            columns = {n: _to_array(table[n].combine_chunks(), f"{self.at}, {n}") for n in table.column_names
                       if n not in ("frame_index", "episode_index", "index")}
        if self._tasks:
            columns["task"] = np.array([self._tasks.get(i, "") for i in columns.pop("task_index").tolist()], np.str_)
        out = []
        for e in numbers:
            rows = slice(int(self._begin[e]) - first, int(self._begin[e] + self.lengths[e]) - first)
            out.append(Episode({n: c[rows] for n, c in columns.items()}, {}, int(self.lengths[e])))
        return out


def _to_array(values: pa.Array, where: str) -> np.ndarray:
    """Converts an Arrow column (numbers, lists, text or encoded images) to an array, (n, ...)."""
    if pa.types.is_struct(values.type) and "bytes" in [f.name for f in values.type]:
        return np.stack([video.decode_image(v.as_py(), 3, f"{where}, row {i}")
                         for i, v in enumerate(values.field("bytes"))])
    array = arrow.to_numpy(values, where)
    return array.astype(np.str_) if array.dtype == object else array

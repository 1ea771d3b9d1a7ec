"""Training from shards that are too many for a disk: tar files (webdataset) and parquet, read in place, whole episodes
at a time, with a shuffle of bounded memory.

    stream = ShardStream("s3://bucket/demos-{000..099}.tar", buffer=50_000)
    some = stream.first(50)
    policy = Policy(recipe, some.features()).fit(some)
    windows = stream.windows(policy.windows)
    fit(learner, lambda step: windows.batch(128, step, seed=0), steps=100_000)

Two levels of shuffling (CorgiPile, Xu et al. 2022): pieces of shards come in random order, anew each epoch; as many as
fit the buffer are held at once, and their windows are drawn in random order, each once. Which windows batch number
`step` has is a function of (step, seed, size, buffer) and the shards alone, so there is no position to save: a run that
was stopped goes on at its step, after reading one buffer.
"""

from __future__ import annotations

import copy
import io
import json
import re
import tarfile
import threading
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

from ..core import Batch, UserError
from . import cache, video
from .batch_sampler import BatchSampler
from .episode import Dataset, Episode
from .formats import remote
from .window import Windows

_SUFFIXES = (".tar", ".parquet")
_CHUNKS_PER_BUFFER = 4  # to a buffer, at least: fewer would be little of a shuffle
_SHUFFLE_STREAM, _SAMPLE_STREAM = 1, 2  # what a random number is for


@dataclass(frozen=True)
class _ShardChunk:
    """Episodes of a shard that follow each other. begin: the number of the first step among those of all shards."""

    shard: int
    episodes: tuple[int, ...]
    steps: int
    first_step: int


class ShardStream:
    """Episodes in shards, in the order of their names.

    addresses: one or several of a tar or parquet file (local, or wherever fsspec reads), a folder of them, or a name
    with {000..099} in it. A sample of a tar file is an episode: KEY.npz with its columns, or a KEY.COLUMN.npy for each,
    and KEY.json with its facts. In parquet files rows of an episode follow each other with one `episode_index`, as
    LeRobot v3.0 has them.
    buffer: steps held in memory at once; an episode that is longer is held alone.
    Where each episode lies is found out first: the columns `episode_index`, or the headers of the tar files, are read
    once. Raises UserError where there is nothing, naming the shard and what is wrong with it.
    """

    def __init__(self, urls: str | Path | Iterable[str | Path], buffer_size: int = 65_536):
        if buffer_size < 1:
            raise UserError(f"expected a buffer of at least one step, found {buffer_size}", where="buffer",
                            hint="such as 65536")
        given = [urls] if isinstance(urls, (str, Path)) else list(urls)
        self.buffer_size = buffer_size
        self.shards = tuple(
            _open_shard(at) for a in given for name in _expand_braces(str(a)) for at in _shard_urls(name)
        )
        if not self.shards:
            raise UserError("expected shards that end in .tar or .parquet, found none", where=given[0] if given else "",
                            hint="name the files, or their folder")
        self.chunks: list[_ShardChunk] = []
        begin = 0
        for number, shard in enumerate(self.shards):
            for episodes in _chunk_episodes(shard.lengths, max(1, buffer_size // _CHUNKS_PER_BUFFER)):
                steps = int(shard.lengths[list(episodes)].sum())
                self.chunks.append(_ShardChunk(number, episodes, steps, begin))
                begin += steps
        self.steps = begin
        if not begin:
            raise UserError("expected at least one episode, found none", where=self.shards[0].at,
                            hint="take shards with episodes in them")

    def __len__(self) -> int:
        """Episodes."""
        return sum(len(s.lengths) for s in self.shards)

    def first_episodes(self, n_episodes: int) -> Dataset:
        """The first so many, or all there are, in memory: for features and statistics."""
        found: list[Episode] = []
        for piece in self.chunks:
            if len(found) >= n_episodes:
                break
            found += self.shards[piece.shard].read(piece.episodes[: n_episodes - len(found)])
        return Dataset(found, {"format": "stream", "path": self.shards[0].at})

    @property
    def key(self) -> str:
        """Of the names of the shards and the lengths of their episodes."""
        return cache.json_digest("stream", *([Path(s.at).name, s.lengths.tolist()] for s in self.shards))

    def exclude(self, episodes: Collection[int]) -> ShardStream:
        """Less these episodes, by their numbers among all."""
        gone, less = set(episodes), copy.copy(self)
        first = np.cumsum([0, *(len(s.lengths) for s in self.shards)])
        less.chunks = []
        for piece in self.chunks:
            begin, lengths = piece.first_step, self.shards[piece.shard].lengths
            for out, run in groupby(piece.episodes, lambda e, first=first[piece.shard]: first + e in gone):
                episodes = tuple(run)
                steps = int(lengths[list(episodes)].sum())
                if not out:
                    less.chunks.append(_ShardChunk(piece.shard, episodes, steps, begin))
                begin += steps
        less.steps = sum(p.steps for p in less.chunks)
        return less

    def windows(self, make_windows: Callable[[Dataset], Windows]) -> StreamWindows:
        """over: makes windows of the episodes in the buffer; `policy.windows`, or a Window's own `over`."""
        return StreamWindows(self, make_windows)


class StreamWindows(BatchSampler):
    """Windows over a stream: `batch` is that of `Windows`, and like it a function of its arguments."""

    def __init__(self, stream: ShardStream, make_windows: Callable[[Dataset], Windows]):
        self.stream, self.make_windows = stream, make_windows
        self._lock = threading.Lock()
        self._loaded_key: tuple[Any, Any] = None, None  # which buffer is held, and what `_load` says of it
        self._previous: tuple[Any, Any] = None, None  # the groups of which epoch
        self._chunk_ends: dict[tuple[int, int], list[int]] = {}  # by (size, seed): batches up to the end of each epoch

    def __len__(self) -> int:
        """The number of windows: one for each step."""
        return self.stream.steps

    def batch(self, size: int, step: int, seed: int = 0, rows: slice = slice(None)) -> Batch:
        """`size` windows: batch number `step` of `seed`. An epoch has each window once, but for those fewer than `size`
        that a buffer has left over; where a buffer has fewer than `size` windows, it gives one batch, some of them
        twice. extra["index"] counts the steps of all shards. rows: only these of them, the share of one process."""
        with self._lock:  # a thread that works ahead may ask as well
            epoch, group, place = self._locate_step(size, step, seed)
            windows, offset, begin = self._load((epoch, group, seed), self._buffers(epoch, seed)[group])
        order = _rng(_SAMPLE_STREAM, seed, epoch, group).permutation(len(windows))
        chosen = np.resize(order, max(size, len(order)))[place * size: (place + 1) * size]
        rng = _rng(_SAMPLE_STREAM, seed, epoch, group, place)
        goals = windows.window.goals  # which are drawn for all rows in turn
        found = windows.gather(chosen, rng).select_rows(rows) if goals else windows.gather(chosen[rows], rng)
        which = np.searchsorted(offset, chosen[rows], side="right") - 1
        index = torch.from_numpy((begin[which] + chosen[rows] - offset[which])[:, None])
        return found.replace(extra={**found.extra, "index": index})

    def _locate_step(self, size: int, step: int, seed: int) -> tuple[int, int, int]:
        """(epoch, buffer in it, batch in that) of a step. Epochs differ in how their pieces fill buffers."""
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
        """The pieces of each buffer of an epoch."""
        if self._previous[0] != (epoch, seed):
            groups, held = [], self.stream.buffer_size + 1
            for i in _rng(_SHUFFLE_STREAM, seed, epoch).permutation(len(self.stream.chunks)).tolist():
                steps = self.stream.chunks[i].steps
                if held + steps > self.stream.buffer_size:
                    groups.append([])
                    held = 0
                groups[-1].append(i)
                held += steps
            self._previous = (epoch, seed), groups
        return self._previous[1]

    def _load(self, key, numbers: list[int]) -> tuple[Windows, np.ndarray, np.ndarray]:
        """The windows of some pieces, where those of each begin among them, and among those of all shards."""
        if self._loaded_key[0] != key:
            self._loaded_key = None, None  # what was held goes before anything new comes
            pieces = [self.stream.chunks[i] for i in sorted(numbers)]
            episodes = [e for p in pieces for e in self.stream.shards[p.shard].read(p.episodes)]
            windows = self.make_windows(Dataset(episodes, {"path": self.stream.shards[pieces[0].shard].at}))
            steps = np.array([p.steps for p in pieces], np.int64)
            if len(windows) != steps.sum():
                raise UserError(f"expected {steps.sum()} steps, as the shards said first, found {len(windows)}",
                                where=self.stream.shards[pieces[0].shard].at,
                                hint="leave shards alone while they are in use")
            self._loaded_key = (
                key,
                (windows, np.cumsum(steps) - steps, np.array([p.first_step for p in pieces], np.int64)),
            )
        return self._loaded_key[1]


def _rng(*key: int) -> np.random.Generator:
    return np.random.default_rng([k % 2**64 for k in key])


def _chunk_episodes(lengths: np.ndarray, most: int) -> Iterable[tuple[int, ...]]:
    """Episodes that follow each other, of at most so many steps together, or one."""
    piece, held = [], 0
    for e, n in enumerate(lengths.tolist()):
        if piece and held + n > most:
            yield tuple(piece)
            piece, held = [], 0
        piece.append(e)
        held += n
    if piece:
        yield tuple(piece)


# -- where shards are -------------------------------------------------------------------------------------------------


def _expand_braces(text: str) -> list[str]:
    """Names with {000..012} in them, written out."""
    parts = re.split(r"\{(\d+)\.\.(\d+)\}", text)
    if len(parts) == 1:
        return [text]
    ranges = [[str(i).zfill(len(a)) for i in range(int(a), int(b) + 1)]
              for a, b in zip(parts[1::3], parts[2::3], strict=True)]
    return ["".join(x for pair in zip(parts[::3], (*chosen, ""), strict=True) for x in pair)
            for chosen in product(*ranges)]


def _shard_urls(name: str) -> list[str]:
    """The shards at an address: itself, or what lies in it."""
    at = remote.url_of(name)
    if at is None or at.startswith("file://"):
        path = Path(name).expanduser() if at is None else remote.local_path(name)
        if not path.exists():
            raise UserError("expected a shard, or a folder of them, found nothing", where=path, hint="check the path")
        if (path / "meta" / "info.json").exists():  # of a LeRobot data set, beside its tables
            path = path / "data"
        return [str(p) for p in sorted(path.rglob("*")) if p.suffix in _SUFFIXES and p.is_file()] if path.is_dir() \
            else [str(path)]
    if at.endswith(_SUFFIXES):
        return [at]
    with remote.remote_errors(at):
        fs, place = remote.open_url(at)
        return [fs.unstrip_protocol(f) for f in sorted(fs.find(place)) if f.endswith(_SUFFIXES)]


def _open_seekable(at: str):
    """A file that can be read from anywhere in it."""
    if remote.url_of(at) is None:
        return open(at, "rb")
    fs, place = remote.open_url(at)
    return fs.open(place, "rb")


def _open_shard(at: str) -> _Shard:
    with _shard_errors(at):
        return _TarShard(at) if at.endswith(".tar") else _ParquetShard(at)


@contextmanager
def _shard_errors(at: str) -> Iterator[None]:
    """Whatever is wrong with a shard as a UserError."""
    try:
        with remote.remote_errors(at) if remote.url_of(at) else nullcontext():
            yield
    except UserError:
        raise
    except (tarfile.TarError, zipfile.BadZipFile, pa.ArrowException, OSError, ValueError, EOFError) as error:
        raise UserError(f"expected a whole shard, found one that cannot be read ({type(error).__name__}: "
                        f"{(str(error).splitlines() or [''])[0][:160]})", where=at,
                        hint="take it from a copy, or leave it out") from None


class _Shard(ABC):
    """lengths: of its episodes, steps."""

    at: str
    lengths: np.ndarray

    @abstractmethod
    def read(self, episodes: Iterable[int]) -> list[Episode]:
        """Some that follow each other, in memory."""


class _TarShard(_Shard):
    """A sample an episode: the files whose names are the same up to the first dot (webdataset)."""

    def __init__(self, at: str):
        self.at, samples = at, {}
        with _open_seekable(at) as handle, tarfile.open(fileobj=handle, mode="r:") as archive:
            for member in archive:
                folder, _, file = member.name.rpartition("/")
                key, dot, rest = file.partition(".")
                if member.isfile() and dot and key:
                    samples.setdefault(f"{folder}/{key}", {})[rest] = member.offset_data, member.size
            self._samples = [files for files in samples.values() if any(n.endswith(("npy", "npz")) for n in files)]
            self.lengths = np.array([self._episode_length(handle, files) for files in self._samples], np.int64)

    def _episode_length(self, handle, files) -> int:
        """By the action, which has one row a step; the array's header is all that is read where it lies alone."""
        if "action.npy" in files:
            handle.seek(files["action.npy"][0])
            version = np.lib.format.read_magic(handle)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            return int(read(handle)[0][0])
        columns = _read_columns(handle, files)
        if "action" not in columns:
            raise UserError(f"expected a column 'action', found {', '.join(columns)}", where=self.at,
                            hint="store each sample as KEY.npz or KEY.COLUMN.npy, with a column action")
        return len(columns["action"])

    def read(self, episodes):
        with _shard_errors(self.at), _open_seekable(self.at) as handle:
            return [self._episode(handle, i) for i in episodes]

    def _episode(self, handle, number) -> Episode:
        files = self._samples[number]
        columns = _read_columns(handle, files)
        facts = json.loads(_read_bytes(handle, files["json"])) if "json" in files else {}
        length = int(self.lengths[number])
        for name, column in columns.items():
            if len(column) not in (length, length + 1):
                raise UserError(f"expected {length} rows, or one more, as of action, found {len(column)}",
                                where=f"{self.at}, sample {number}, {name}", hint="store a row for each step")
        return Episode(columns, facts if isinstance(facts, dict) else {}, length)


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
    """Nothing is read ahead: a thread of arrow's that still holds the handle, which is Python's, when the interpreter
    ends brings SIGABRT."""
    return pq.ParquetFile(handle, pre_buffer=False)


class _ParquetShard(_Shard):
    """Rows of an episode follow each other."""

    def __init__(self, at: str):
        self.at = at
        with _open_seekable(at) as handle:
            source = _open_parquet(handle)
            if "episode_index" not in source.schema_arrow.names:
                raise UserError(f"expected a column episode_index, found {', '.join(source.schema_arrow.names)}",
                                where=at, hint="say of each row which episode it belongs to")
            numbers = source.read(columns=["episode_index"], use_threads=False)["episode_index"].to_numpy()
            self._groups = np.cumsum([0, *(source.metadata.row_group(i).num_rows
                                           for i in range(source.metadata.num_row_groups))])
        edges = np.flatnonzero(np.diff(numbers)) + 1
        self._begin = np.concatenate([[0], edges]) if len(numbers) else np.empty(0, np.int64)
        self.lengths = np.diff(np.append(self._begin, len(numbers))).astype(np.int64)
        if len(np.unique(numbers)) != len(self._begin):
            raise UserError("expected the rows of an episode to follow each other, found some apart", where=at,
                            hint="sort the rows by episode_index and frame_index")

    def read(self, episodes):
        wanted = list(episodes)
        if not wanted:
            return []
        first, last = int(self._begin[wanted[0]]), int(self._begin[wanted[-1]] + self.lengths[wanted[-1]])
        with _shard_errors(self.at):
            with _open_seekable(self.at) as handle:
                groups = [i for i in range(len(self._groups) - 1)
                          if self._groups[i] < last and self._groups[i + 1] > first]
                table = _open_parquet(handle).read_row_groups(groups, use_threads=False)
            table = table.slice(first - int(self._groups[groups[0]]), last - first)
            columns = {n: _to_array(table[n].combine_chunks(), f"{self.at}, {n}") for n in table.column_names
                       if n not in ("frame_index", "episode_index", "index")}
        out = []
        for e in wanted:
            rows = slice(int(self._begin[e]) - first, int(self._begin[e] + self.lengths[e]) - first)
            out.append(Episode({n: c[rows] for n, c in columns.items()}, {}, int(self.lengths[e])))
        return out


def _to_array(values: pa.Array, where: str) -> np.ndarray:
    """(n, ...) of numbers, lists of them, text, or encoded images."""
    if pa.types.is_struct(values.type) and "bytes" in [f.name for f in values.type]:
        return np.stack([video.decode_image(v.as_py(), 3, f"{where}, row {i}")
                         for i, v in enumerate(values.field("bytes"))])
    shape = [len(values)]
    while isinstance(values.type, pa.BaseExtensionType) or pa.types.is_nested(values.type):
        if isinstance(values.type, pa.BaseExtensionType):
            values = values.storage
            continue
        inner = values.flatten()
        rows = len(values)
        if rows and len(inner) % rows or not pa.types.is_nested(values.type) or pa.types.is_struct(values.type):
            raise UserError(
                f"expected rows of one length, found {values.type}", where=where, hint="leave the column out"
            )
        shape.append(len(inner) // max(rows, 1))
        values = inner
    if values.null_count:
        raise UserError(f"expected a value in each row, found {values.null_count} missing", where=where,
                        hint="leave the column out, or fill them")
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return np.array(values.to_pylist(), np.str_)
    return values.to_numpy(zero_copy_only=False).reshape(shape)

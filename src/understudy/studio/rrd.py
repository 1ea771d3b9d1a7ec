"""Writes a data set as one recording for the viewer rerun.io: episodes one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..core import UserError, role
from ..data.episode import Dataset
from ..files import whole_file
from .html_page import decode_texts, encode_jpeg, episode_success, text_runs

Progress = Callable[[int, int], None]  # (episodes done, of)
_BATCH_ROWS = 32_768  # numbers of a column per chunk
_BATCH_IMAGES = 64  # per chunk


def write_rrd(
    file: Path | str, data: Dataset, *, title: str = "demonstrations", progress: Progress | None = None
) -> Path:
    """Writes one .rrd file, for the Rerun viewer.

    The timeline `row` counts rows from the first episode on. Each episode has one more row than steps, for the last
    observation. There is also `seconds` if the rate is known. A column `a.b` is the entity /a/b, and its lines have the
    names of its components. /episode and /step tell where a row comes from, and the log /episodes which episode starts
    there. Images keep their size.

    Args:
        progress: Called with the number of episodes that are written, and of all.
    """
    try:
        import rerun as rr
    except ImportError:
        raise UserError("rerun-sdk is not installed", where=file,
                        hint="pip install 'understudy[rerun]'") from None
    with whole_file(file) as part:
        out = rr.RecordingStream(f"understudy {title}")
        try:
            out.save(part)
            _log_episodes(rr, out, data, progress)
            out.flush()
        finally:
            out.disconnect()
    return Path(file)


def _log_episodes(rr, out, data: Dataset, progress: Progress | None) -> None:
    lengths = data.lengths if len(data) else []
    features = {n: f for n, f in (data.features() if len(data) else {}).items()
                if role(n) != "index" or n == "timestamp"}
    paths = {n: "/" + "/".join(map(rr.escape_entity_path_part, n.split("."))) for n in features}
    for name, f in features.items():
        if f.kind in ("vector", "discrete") and f.names:
            out.log(paths[name], rr.SeriesLines(names=list(f.names)), static=True)
    buffer = _ColumnBuffer(rr, out, data.fps)
    first, begins = 0, []
    for e, (episode, n) in enumerate(zip(data, map(int, lengths), strict=True)):
        steps = np.arange(n)
        buffer.add("/episode", first + steps, np.full(n, e))
        buffer.add("/step", first + steps, steps)
        ended = {True: ", success", False: ", failure", None: ""}[episode_success(episode)]
        begins.append((first, f"episode {e}: {n} steps{ended}"))
        for name, f in features.items():
            if f.kind == "image":
                for rows, images in _batches(data.frames(name, e)):
                    buffer.send(paths[name], first + np.asarray(rows, np.int64),
                                rr.EncodedImage.columns(blob=images, media_type=["image/jpeg"] * len(rows)))
                continue
            values = np.asarray(episode.steps[name])
            if f.kind in ("text", "string"):
                changes = text_runs(decode_texts(values))
                buffer.send(paths[name], [first + row for row, _ in changes],
                            rr.TextDocument.columns(text=[text for _, text in changes]))
            else:
                buffer.add(paths[name], first + np.arange(len(values)), values)
        first += n + 1
        if progress is not None:
            progress(e + 1, len(lengths))
    for path in list(buffer.pending):
        buffer.release(path)
    buffer.send("/episodes", [row for row, _ in begins], rr.TextLog.columns(text=[text for _, text in begins]))


class _ColumnBuffer:
    """Collects numbers of several episodes by path, because each chunk that is sent costs 2 KB."""

    def __init__(self, rr, out, fps: float | None):
        self.rr, self.out, self.fps = rr, out, fps
        self.pending: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}

    def add(self, path: str, rows: np.ndarray, values: np.ndarray) -> None:
        self.pending.setdefault(path, []).append((rows, values.reshape(len(rows), -1).astype(np.float64)))
        if sum(v.size for _, v in self.pending[path]) >= _BATCH_ROWS:
            self.release(path)

    def release(self, path: str) -> None:
        rows, values = (np.concatenate(parts) for parts in zip(*self.pending.pop(path), strict=True))
        self.send(path, rows, self.rr.Scalars.columns(scalars=values))

    def send(self, path: str, rows, columns) -> None:
        if len(rows):
            rows = np.asarray(rows, np.int64)
            seconds = [self.rr.TimeColumn("seconds", duration=rows / self.fps)] if self.fps else []
            self.out.send_columns(path, [self.rr.TimeColumn("row", sequence=rows), *seconds], columns)


def _batches(frames: Iterator[tuple[Any, np.ndarray]]) -> Iterator[tuple[list[int], list[bytes]]]:
    """Yields rows and their JPEG images. One image may belong to several rows."""
    rows: list[int] = []
    images: list[bytes] = []
    for which, image in frames:
        coded = encode_jpeg(image)
        for row in np.atleast_1d(which).tolist():
            rows.append(row)
            images.append(coded)
        if len(rows) >= _BATCH_IMAGES:
            yield rows, images
            rows, images = [], []
    yield rows, images

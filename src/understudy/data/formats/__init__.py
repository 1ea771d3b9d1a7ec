"""One file a format. `open_dataset` recognises a source by what is in it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from ...core import UserError
from .. import cache, video
from ..episode import Dataset
from . import lerobot, npz
from .base import Episodes, Framed, Progress, cameras
from .describe import check_finite, describe
from .sniff import sniff

__all__ = ["Cost", "check_finite", "describe", "frame_cost", "lerobot", "npz", "open_dataset", "sniff", "with_frames"]

_OPEN = {"lerobot": lerobot.open_lerobot, "npz": npz.open_npz}


def open_dataset(path: str | Path, *, image_size: int | tuple[int, int] | None = None,
                 progress: Progress | None = None) -> Dataset:
    """The data set at `path`, whatever format it is in. Nothing is read of the data until a column is asked for.

    image_size: side, or (height, width), in pixels: every camera frame is decoded once, now, into a memory map of
    that size (`frame_cost` says beforehand what that takes). Without it, frames are decoded when asked for, as they
    are. progress: called with (frames done, frames in all).
    """
    path = Path(path).expanduser()
    data = _OPEN[sniff(path)](path)
    return data if image_size is None else with_frames(data, image_size, progress)


def with_frames(data: Dataset, image_size: int | tuple[int, int], progress: Progress | None = None) -> Dataset:
    """`data`, as it was opened, with its cameras decoded once to `image_size` (see video.resize)."""
    source = _source(data)
    if not cameras(source.schema):
        return data
    framed = Framed(source, video.size_of(image_size), data.facts["path"], progress)
    return Dataset(Episodes(framed, data._episodes.numbers), data.facts)


@dataclass(frozen=True)
class Cost:
    """What decoding all frames takes: bytes on disk, and seconds on this machine (0 where it has been done)."""

    frames: int
    bytes: int
    seconds: float


def frame_cost(data: Dataset, image_size: int | tuple[int, int]) -> Cost:
    """Beforehand. The seconds are measured on the first episode, so that it takes as long as that one does."""
    source, size = _source(data), video.size_of(image_size)
    names = cameras(source.schema)
    frames = sum(int(source.rows(n).sum()) for n in names)
    total = sum(int(source.rows(n).sum()) * size[0] * size[1] * source.schema[n].shape[2] for n in names)
    if not names or cache.has(Framed.key_of(source, size)):
        return Cost(frames, total, 0.0)
    began, seen = time.perf_counter(), 0
    for name in names:
        for _, image in source.frames(name, 0):
            video.resize(image, size)
            seen += 1
    return Cost(frames, total, (time.perf_counter() - began) * frames / seen)


def _source(data: Dataset):
    if not isinstance(data._episodes, Episodes):
        raise UserError("expected a data set as it was opened, found one that was changed since",
                        do="decode the frames first: Dataset.open(path, image_size=...)")
    return data._episodes.source

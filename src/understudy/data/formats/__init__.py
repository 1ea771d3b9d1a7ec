"""One file a format. `open_dataset` recognises a source by what is in it, `write_dataset` writes any that can be.

A format that is read has a function `open_NAME(path) -> Dataset`, whose episodes are `Episodes` of a `Source`. One that
is written has `holds(data) -> Holds` and `write(data, path)`. Both are imported when they are used, so that what reads
HDF5 is needed by nobody else.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from ...core import UserError
from .. import cache, video
from ..episode import Dataset
from . import lerobot, npz, side
from .base import Episodes, Framed, Progress, cameras
from .describe import check_finite, describe
from .sniff import sniff

__all__ = ["WRITES", "Cost", "check_finite", "describe", "frame_cost", "lerobot", "look", "losses", "npz",
           "open_dataset", "sniff", "with_frames", "write_dataset"]

_READS = {  # what `sniff` says -> module, function
    "lerobot": ("lerobot", "open_lerobot"),
    "npz": ("npz", "open_npz"),
    "bags": ("bags", "open_bags"),
}
WRITES = {  # what `convert --to` takes -> module
    "lerobot": "lerobot",
}


def open_dataset(path: str | Path, *, image_size: int | tuple[int, int] | None = None,
                 mapping: str | Path | Mapping | None = None, progress: Progress | None = None) -> Dataset:
    """The data set at `path`, whatever format it is in. Nothing is read of the data until a column is asked for.

    image_size: side, or (height, width), in pixels: every camera frame is decoded once, now, into a memory map of
    that size (`frame_cost` says beforehand what that takes). Without it, frames are decoded when asked for, as they
    are. mapping: of the topics of bags to columns (mapping.py), which only they take and which they need.
    progress: called with (frames done, frames in all).
    """
    path = Path(path).expanduser()
    kind = sniff(path)
    if mapping is not None and kind != "bags":
        raise UserError(f"expected a recording of messages (MCAP, ROS) with a mapping, found {kind}", where=path,
                        do="leave the mapping out")
    module, function = _READS[kind]
    options = {"mapping": mapping} if kind == "bags" else {}
    data = side.opened(path, getattr(import_module(f".{module}", __package__), function)(path, **options))
    return data if image_size is None else with_frames(data, image_size, progress)


def look(path: str | Path, mapping: str | Path | Mapping | None = None) -> Dataset:
    """As `open_dataset`, for those that only look: bags need no mapping, and may have no episode. Without one they
    are read under the mapping that is proposed for them, facts["mapping"]."""
    path = Path(path).expanduser()
    if mapping is None and sniff(path) == "bags":
        from . import bags

        return bags.look(path)
    return open_dataset(path, mapping=mapping)


def losses(data: Dataset, to: str, **options) -> list[side.Loss]:
    """What of these data format `to` cannot hold by itself. `options` are those of its `write`."""
    return side.losses(data, _module(to).holds(data, **options))


def write_dataset(data: Dataset, path: str | Path, to: str = "lerobot", **options) -> None:
    """A new file or folder in format `to`, there whole or not at all, and with it what the format has no place for
    (side.py). Raises UserError where something is there already."""
    _module(to).write(data, Path(path), **options)


def _module(to):
    if to not in WRITES:
        raise UserError(f"expected one of {', '.join(WRITES)}, found {to!r}", do="choose a format that is written")
    return import_module(f".{WRITES[to]}", __package__)


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

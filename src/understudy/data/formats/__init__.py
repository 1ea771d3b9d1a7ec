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
from inspect import signature
from pathlib import Path

import numpy as np

from ...core import UserError
from .. import cache, video
from ..episode import Dataset
from . import lerobot, npz, remote, side
from .base import Episodes, Framed, Progress, cameras
from .describe import check_finite, describe
from .sniff import find, sniff

__all__ = ["WRITES", "Cost", "check_finite", "describe", "formats_of", "frame_cost", "lerobot", "look", "losses",
           "npz", "open_dataset", "sniff", "with_frames", "write_dataset"]

_READS = {  # what `sniff` says -> module, function
    "lerobot": ("lerobot", "open_lerobot"),
    "npz": ("npz", "open_npz"),
    "npz-folder": ("folder", "open_npz_folder"),
    "csv": ("folder", "open_csv"),
    "zarr": ("zarr_store", "open_zarr"),
    "rlds": ("rlds", "open_rlds"),
    "ogbench": ("ogbench", "open_ogbench"),
    "robomimic": ("robomimic", "open_robomimic"),
    "act": ("act", "open_act"),
    "minari": ("minari", "open_minari"),
    "d4rl": ("d4rl", "open_d4rl"),
    "imitation": ("imitation", "open_imitation"),
    "bags": ("bags", "open_bags"),
    "overcooked": ("overcooked", "open_overcooked"),
    "view": (".views", "open_view"),
}
WRITES = {  # what `convert --to` takes -> module
    "lerobot": "lerobot",
    "lerobot-v2.1": "lerobot_v21",
    "robomimic": "robomimic",
    "zarr": "zarr_store",
    "act": "act",
    "rlds": "rlds",
    "minari": "minari",
    "d4rl": "d4rl",
    "ogbench": "ogbench",
    "npz": "npz",
    "csv": "folder",
}


SUFFIXES = {  # what `convert` writes to a name that ends so: the format, then others that could be meant
    ".hdf5": ("robomimic", "act", "d4rl", "minari"),
    ".h5": ("robomimic", "act", "d4rl", "minari"),
    ".zarr": ("zarr",),
    ".zarr.zip": ("zarr",),
    ".npz": ("npz", "ogbench"),
    ".csv": ("csv",),
}


def formats_of(path: str | Path) -> tuple[str, ...]:
    """The format to write at `path` by its suffix, then others with this suffix. LeRobot where there is none.

    Raises:
        UserError: No format has the suffix.
    """
    name = Path(path).name.lower()
    if not Path(name).suffix:
        return ("lerobot",)
    for suffix, formats in SUFFIXES.items():
        if name.endswith(suffix):
            return formats
    raise UserError(f"no format has the suffix {Path(name).suffix}; there are {', '.join(SUFFIXES)}, and a name "
                    "without a suffix for LeRobot", where=path,
                    do=f"name the format: --to lerobot ({', '.join(WRITES)})")


def open_dataset(path: str | Path, *, image_size: int | tuple[int, int] | None = None,
                 progress: Progress | None = None, **options) -> Dataset:
    """The data set at `path`, or the only one in that folder, whatever format it is in. Nothing is read of the data
    until a column is asked for. path may be an address (remote.py).

    image_size: side, or (height, width), in pixels: every camera frame is decoded once, now, into a memory map of
    that size (`frame_cost` says beforehand what that takes). Without it, frames are decoded when asked for, as they
    are. progress: called with (frames done, frames in all). options: of the format: mask (robomimic: a filter key),
    max_episode_steps (D4RL: where episodes were cut, in a file that does not say), final_step (RLDS), mapping (of the
    topics of bags to columns, which they need: mapping.py).
    """
    given = path
    path, kind = find(remote.local(path))
    module, function = _READS[kind]
    read = getattr(import_module(f".{module}", __package__), function)
    options = {name: value for name, value in options.items() if value is not None}
    if unknown := options.keys() - signature(read).parameters.keys():
        raise UserError(f"{kind} data are opened without {', '.join(sorted(unknown))}", where=path, do="leave it out")
    data = side.opened(path, read(path, **options))
    if at := remote.address(given):
        data = Dataset(data._episodes, {**data.facts, "path": at})
    return data if image_size is None else with_frames(data, image_size, progress)


def look(path: str | Path, mapping: str | Path | Mapping | None = None, **options) -> Dataset:
    """As `open_dataset`, for those that only look: bags need no mapping, and may have no episode. Without one they
    are read under the mapping that is proposed for them, facts["mapping"]."""
    place, kind = find(remote.local(path))
    if mapping is None and kind == "bags":
        from . import bags

        return bags.look(place)
    return open_dataset(path, mapping=mapping, **options)


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
    """Beforehand. The seconds are measured on the first episode with frames, so that it takes as long as that does."""
    source, size = _source(data), video.size_of(image_size)
    names = cameras(source.schema)
    frames = sum(int(source.rows(n).sum()) for n in names)
    total = sum(int(source.rows(n).sum()) * size[0] * size[1] * source.schema[n].shape[2] for n in names)
    if not names or cache.has(Framed.key_of(source, size)):
        return Cost(frames, total, 0.0)
    began, seen = time.perf_counter(), 0
    for name in names:
        for _, image in source.frames(name, int(np.argmax(source.rows(name) > 0))):
            video.resize(image, size)
            seen += 1
    return Cost(frames, total, (time.perf_counter() - began) * frames / seen)


def _source(data: Dataset):
    if not isinstance(data._episodes, Episodes):
        raise UserError("expected a data set as it was opened, found one that was changed since",
                        do="decode the frames first: Dataset.open(path, image_size=...)")
    return data._episodes.source

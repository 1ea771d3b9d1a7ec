"""One file a format. `open_dataset` recognises a source by what is in it, `write_dataset` writes any that can be.

A format that is read has a function `open_NAME(path) -> Dataset`, whose episodes are `SourceEpisodes` of a `Source`.
One that
is written has `holds(data) -> Holds` and `write(data, path)`. Both are imported when they are used, so that what reads
HDF5 is needed by nobody else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path

import numpy as np

from ...core import UserError
from ...plugins import find_plugins, load_plugin
from .. import cache, video
from ..episode import Dataset
from . import lerobot, npz, remote, sidecar
from .base import DecodedFramesSource, Progress, SourceEpisodes, camera_names
from .describe import check_finite, describe
from .detection import detect_format, format_of

__all__ = [
    "WRITERS", "RegisteredFormat",
    "DecodingCost",
    "check_finite",
    "conversion_losses",
    "decode_frames",
    "describe",
    "format_of",
    "formats_for_suffix",
    "frame_cost",
    "lerobot",
    "npz",
    "open_dataset",
    "preview_dataset",
    "write_dataset",
]

_READERS = {  # what `sniff` says -> module, function
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
WRITERS = {  # what `convert --to` takes -> module
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


_SUFFIXES = {  # of a name to write: the format, then others that also have this suffix
    ".hdf5": ("robomimic", "act", "d4rl", "minari"),
    ".h5": ("robomimic", "act", "d4rl", "minari"),
    ".zarr": ("zarr",),
    ".zarr.zip": ("zarr",),
    ".npz": ("npz", "ogbench"),
    ".csv": ("csv",),
}


@dataclass(frozen=True)
class RegisteredFormat:
    """A format that an installed package registers under the entry points `understudy.formats`.

    Args:
        detect: Whether a file or folder is in this format. Asked for what is in none of understudy's.
        open: Reads the file or folder.
    """

    detect: Callable[[Path], bool]
    open: Callable[[Path], Dataset]


def _find_registered(path: str | Path) -> RegisteredFormat | None:
    """The format of another package that a file or folder is in, if it is in none of understudy's."""
    if not (plugins := find_plugins("formats")) or not (place := Path(path)).exists():
        return None
    try:
        detect_format(place)
    except UserError:
        found = (load_plugin("formats", name) for name in plugins)
        return next((f for f in found if f.detect(place)), None)
    return None


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
    if registered := _find_registered(path):
        return registered.open(Path(path))
    given = path
    path, kind = detect_format(remote.local_path(path))
    module, function = _READERS[kind]
    read = getattr(import_module(f".{module}", __package__), function)
    options = {name: value for name, value in options.items() if value is not None}
    if unknown := options.keys() - signature(read).parameters.keys():
        raise UserError(f"{kind} data are opened without {', '.join(sorted(unknown))}", where=path, hint="leave it out")
    data = sidecar.apply_sidecar(path, read(path, **options))
    if at := remote.url_of(given):
        data = Dataset(data._episodes, {**data.metadata, "path": at})
    return data if image_size is None else decode_frames(data, image_size, progress)


def preview_dataset(path: str | Path, mapping: str | Path | Mapping | None = None, **options) -> Dataset:
    """As `open_dataset`, for those that only look: bags need no mapping, and may have no episode. Without one they
    are read under the mapping that is proposed for them, facts["mapping"]."""
    if _find_registered(path):
        return open_dataset(path)
    place, kind = detect_format(remote.local_path(path))
    if mapping is None and kind == "bags":
        from . import bags

        return bags.preview_bags(place)
    return open_dataset(path, mapping=mapping, **options)


def conversion_losses(data: Dataset, to: str, **options) -> list[sidecar.ConversionLoss]:
    """What of these data format `to` cannot hold by itself. `options` are those of its `write`."""
    return sidecar.conversion_losses(data, _format_module(to).capability(data, **options))


def write_dataset(data: Dataset, path: str | Path, to: str | None = None, **options) -> None:
    """Writes a new file or folder, whole or not at all. What the format has no place for goes into a sidecar file.

    Args:
        data: The episodes to write.
        path: Where to write. Nothing may be there.
        to: A key of `WRITERS`. By default the format is that of the suffix of `path`, and LeRobot without a suffix.
        options: Options of the format's `write`.

    Raises:
        UserError: There is a file or folder already, or no format has the suffix.
    """
    _format_module(to or formats_for_suffix(path)[0]).write(data, Path(path), **options)


def formats_for_suffix(path: str | Path) -> tuple[str, ...]:
    """The format to write at `path` by its suffix, followed by other formats with this suffix.

    A name without a suffix is a LeRobot folder.

    Raises:
        UserError: No format has the suffix.
    """
    name = Path(path).name.lower()
    if not Path(name).suffix:
        return ("lerobot",)
    for suffix, formats in _SUFFIXES.items():
        if name.endswith(suffix):
            return formats
    raise UserError(f"no format is written to names that end in {Path(name).suffix}", where=path,
                    hint=f"use one of {', '.join(_SUFFIXES)}, or name the format, such as --to lerobot")


def _format_module(to):
    if to not in WRITERS:
        raise UserError(f"expected one of {', '.join(WRITERS)}, found {to!r}", hint="choose a format that is written")
    return import_module(f".{WRITERS[to]}", __package__)


def decode_frames(data: Dataset, image_size: int | tuple[int, int], progress: Progress | None = None) -> Dataset:
    """`data`, as it was opened, with its cameras decoded once to `image_size` (see video.resize)."""
    source = _column_source(data)
    if not camera_names(source.schema):
        return data
    framed = DecodedFramesSource(source, video.parse_image_size(image_size), data.metadata["path"], progress)
    return Dataset(SourceEpisodes(framed, data._episodes.indices), data.metadata)


@dataclass(frozen=True)
class DecodingCost:
    """What decoding all frames takes: bytes on disk, and seconds on this machine (0 where it has been done)."""

    frames: int
    bytes: int
    seconds: float


def frame_cost(data: Dataset, image_size: int | tuple[int, int]) -> DecodingCost:
    """Beforehand. The seconds are measured on the first episode with frames, so that it takes as long as that does."""
    source, size = _column_source(data), video.parse_image_size(image_size)
    names = camera_names(source.schema)
    frames = sum(int(source.rows(n).sum()) for n in names)
    total = sum(int(source.rows(n).sum()) * size[0] * size[1] * source.schema[n].shape[2] for n in names)
    if not names or cache.contains(DecodedFramesSource.cache_key(source, size)):
        return DecodingCost(frames, total, 0.0)
    began, seen = time.perf_counter(), 0
    for name in names:
        for _, image in source.frames(name, int(np.argmax(source.rows(name) > 0))):
            video.resize(image, size)
            seen += 1
    return DecodingCost(frames, total, (time.perf_counter() - began) * frames / seen)


def _column_source(data: Dataset):
    if not isinstance(data._episodes, SourceEpisodes):
        raise UserError("expected a data set as it was opened, found one that was changed since",
                        hint="decode the frames first: Dataset.open(path, image_size=...)")
    return data._episodes.source

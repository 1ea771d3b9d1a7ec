"""The registry of data formats, and the functions that open and write data sets in them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from inspect import signature
from pathlib import Path

import numpy as np

from ...core import DataError, Schema, UserError
from ...plugins import find_plugins, load_plugin
from .. import cache, video
from ..episode import Dataset, EpisodeList, LazyColumns
from ..packed_columns import cast_exactly
from ..sources import DecodedFramesSource, Progress, camera_names
from . import remote
from .detection import detect_format
from .parts import sidecar

READERS = {  # format, as `detection` names it -> module, source or function that opens it
    "lerobot": ("lerobot", "open_lerobot"),
    "npz": ("npz", "NpzSource"),
    "npz-folder": ("folder", "NpzFolderSource"),
    "csv": ("folder", "open_csv"),
    "zarr": ("zarr_store", "ZarrSource"),
    "rlds": ("rlds", "RldsSource"),
    "ogbench": ("ogbench", "OGBenchSource"),
    "robomimic": ("robomimic", "open_robomimic"),
    "act": ("act", "ActSource"),
    "minari": ("minari", "open_minari"),
    "d4rl": ("d4rl", "D4rlSource"),
    "imitation": ("imitation", "open_imitation"),
    "bags": ("logs.bags", "open_bags"),
    "overcooked": ("overcooked", "OvercookedSource"),
    "view": (".opening.view_file", "open_view"),
}
WRITERS = {  # format, as in `convert --to` -> module
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


_SUFFIXES = {  # suffix of a new file: its default format, then other formats with this suffix
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
        detect: Whether a file or folder is in this format. It is called only for paths that are in no built-in format.
    """

    detect: Callable[[Path], bool]
    open: Callable[[Path], Dataset]


def _find_registered(path: str | Path) -> RegisteredFormat | None:
    """Returns the format of an installed package that a file or folder is in, if it is in none of understudy's."""
    if not (plugins := find_plugins("formats")) or not (place := Path(path)).exists():
        return None
    try:
        detect_format(place)
    except UserError:
        formats = (load_plugin("formats", name) for name in plugins)
        return next((f for f in formats if f.detect(place)), None)
    return None


def open_dataset(path: str | Path, *, columns: Mapping[str, str | Sequence[str]] | Sequence[str] = (),
                 image_size: int | tuple[int, int] | None = None, progress: Progress | None = None,
                 **options) -> Dataset:
    """Opens a data set in any format. Columns are read when they are asked for.

    Args:
        path: The data set, a folder with one data set in it, or a URL (see `remote`).
        columns: For data with other names, what each column is made of: ``{"state": ["q1", "q2"], "action": "u"}``, or
            the texts of the option ``--columns``, ``["state=q1,q2", "action=u"]``. "state" stands for
            `observation.state`, "reward" for `next.reward`, and an unknown NAME for `observation.NAME`. "episode" names
            the column that tells episodes apart, and "episode_lengths" the array of their lengths. CSV, npz and HDF5
            files are then opened whatever their columns are called. Other columns stay as they are.
        image_size: Side, or (height, width), in pixels. Every camera frame is decoded once, now, into a memory map of
            that size (`frame_cost` estimates the cost). By default frames are decoded when they are asked for, in their
            own size.
        progress: Called with the number of decoded frames and the number of all frames.
        **options: Options of the format: mask (robomimic: a filter key), max_episode_steps (D4RL: the time limit of
            episodes, for a file without timeouts), final_step (RLDS), mapping (bags: the mapping of topics to columns,
            which is required).

    Example:
        >>> data = open_dataset("demos.hdf5", image_size=96)
        >>> data = open_dataset("runs.csv", columns={"state": ["q1", "q2"], "action": ["u1", "u2"], "episode": "run"})
    """
    if columns:
        opening = import_module("..opening.column_selection", __package__)
        data = opening.open_columns(path, opening.parse_columns(columns), **options)
        return data if image_size is None else decode_frames(data, image_size, progress)
    if registered := _find_registered(path):
        return registered.open(Path(path))
    url = remote.url_of(path)
    path, kind = detect_format(remote.local_path(path))
    module, function = READERS[kind]
    read = getattr(import_module(f".{module}", __package__), function)
    options = {name: value for name, value in options.items() if value is not None}
    if unknown := options.keys() - signature(read).parameters.keys():
        raise UserError(f"{kind} data are opened without {', '.join(sorted(unknown))}", where=path, hint="leave it out")
    if kind == "view":
        options["open_parent"] = open_dataset
    data = read(path, **options)
    data = sidecar.apply_sidecar(path, data if isinstance(data, Dataset) else Dataset(data))
    if url is not None:
        data = Dataset(data.source, {**data.metadata, "path": url}, data.indices)
    return data if image_size is None else decode_frames(data, image_size, progress)


def preview_dataset(path: str | Path, mapping: str | Path | Mapping | None = None, **options) -> Dataset:
    """Opens a data set to inspect it: like `open_dataset`, but bags need no mapping and may have no episodes.

    Args:
        mapping: The mapping of topics to columns, for bags. By default a mapping is proposed, which is then
            `metadata["mapping"]`.
    """
    if _find_registered(path):
        return open_dataset(path)
    place, kind = detect_format(remote.local_path(path))
    if mapping is None and kind == "bags":
        from .logs import bags

        return bags.preview_bags(place)
    return open_dataset(path, mapping=mapping, **options)


def conversion_losses(data: Dataset, to: str, **options) -> list[sidecar.ConversionLoss]:
    """Lists what a format, a key of `WRITERS`, cannot store without a sidecar file, with options of its `write`."""
    return sidecar.conversion_losses(data, _format_module(to).capability(data, **options))


def write_dataset(data: Dataset, path: str | Path, to: str | None = None, **options) -> None:
    """Writes a new file or folder, completely or not at all. What the format cannot store goes into a sidecar file.

    All episodes must have the columns of the first one. Only actions that are numbers may be absent: they become NaN.

    Args:
        to: A key of `WRITERS`. By default the format of the suffix of `path`, and LeRobot without a suffix.
        **options: Options of the format's `write`.

    Example:
        >>> write_dataset(open_dataset("demos.hdf5"), "demos.zarr")
    """
    _format_module(to or formats_for_suffix(path)[0]).write(_with_equal_columns(data), Path(path), **options)


def _with_equal_columns(data: Dataset) -> Dataset:
    """Returns the episodes with equal columns: NaN stands for absent actions.

    A number that would change in the type that its column has in the first episode is an error when it is read.
    """
    features, episodes = data.features(), []
    if not isinstance(data.source, EpisodeList):
        return data
    for i, episode in enumerate(data):
        absent = {name for name in features if name not in episode.steps and name not in ("task", "timestamp")}
        further = set(episode.steps) - {*features, "task", "timestamp"}
        if further or absent and (absent != {"action"} or features["action"].dtype not in ("float32", "float64")):
            raise DataError("only some of the episodes have it",
                            where=f"episode {i}, column {min(absent or further)!r}",
                            hint="give all episodes the same columns; actions that are numbers may be NaN")
        episode = episode.replace({name: np.full((len(episode), *features[name].shape), np.nan, features[name].dtype)
                                   for name in absent})
        read = partial(_read_exactly, episode.steps, features, f"episode {i}")
        episodes.append(replace(episode, steps=LazyColumns(episode.steps, read)))
    return Dataset(episodes, data.metadata)


def _read_exactly(steps: Mapping[str, np.ndarray], features: Schema, where: str, name: str) -> np.ndarray:
    """Returns a column of an episode in the type that the first episode's column has.

    Another shape is an error, because the rows of all episodes go into one array.
    """
    column, f = np.asarray(steps[name]), features.get(name)
    if f is not None and column.shape[1:] != f.shape:
        raise DataError(f"a step has the shape {column.shape[1:]}, but {f.shape} in episode 0",
                        where=f"{where}, column {name!r}",
                        hint="give it one shape in all episodes, or leave it out")
    kinds = column.dtype.kind, "U" if f is None or f.kind == "string" else np.dtype(f.dtype).kind
    if f is None or not set(kinds) <= set("biuf"):
        return column
    return cast_exactly(column, f.dtype, f"{where}, column {name!r}")


def formats_for_suffix(path: str | Path) -> tuple[str, ...]:
    """Returns the format to write at a path by its suffix, followed by other formats with this suffix.

    A name without a suffix is a LeRobot folder.
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
        raise UserError(f"there is no format {to!r} to write", hint=f"choose one of {', '.join(WRITERS)}")
    return import_module(f".{WRITERS[to]}", __package__)


def decode_frames(data: Dataset, image_size: int | tuple[int, int], progress: Progress | None = None) -> Dataset:
    """Decodes all camera frames of a data set once, to one size (see `video.resize`).

    Frames of episodes that are left out are decoded too, so that other views of the data need not do it again. If an
    episode that is left out is damaged, only the episodes of the data set are decoded.

    Args:
        image_size: Side, or (height, width), in pixels.

    Returns:
        The data. Their metadata have the recorded (height, width) of each camera, `camera_sizes`.
    """
    source = _column_source(data)
    schema, own = source.schema, _own_episodes(data)
    sizes = {name: schema[name].shape[:2] for name in camera_names(schema)}
    if not sizes:
        return data
    size, path = video.parse_image_size(image_size), data.metadata["path"]
    metadata = {**data.metadata, "camera_sizes": sizes}
    episodes = None if own is None or not cache.contains(DecodedFramesSource.cache_key(source, size, own)) else own
    try:
        decoded = DecodedFramesSource(source, size, path, progress, episodes)
    except UserError as error:
        if own is None or isinstance(error, cache.DiskError):
            raise
        decoded = DecodedFramesSource(source, size, path, progress, own)
    return Dataset(decoded, metadata, data.indices)


def _own_episodes(data: Dataset) -> list[int] | None:
    """Returns the episode numbers in the source, in order. None if they are all of its episodes."""
    own = sorted({int(i) for i in data.indices})
    return own if len(own) < len(data.source) else None


@dataclass(frozen=True)
class DecodingCost:
    """The cost of decoding all camera frames of a data set.

    Args:
        bytes: Size on disk.
        seconds: Time on this machine. 0 if they are decoded already.
    """

    frames: int
    bytes: int
    seconds: float


def frame_cost(data: Dataset, image_size: int | tuple[int, int]) -> DecodingCost:
    """Estimates the cost of `decode_frames` at this size, by decoding the first episode that has frames."""
    source, size = _column_source(data), video.parse_image_size(image_size)
    names = camera_names(source.schema)
    frames = sum(int(source.rows(n).sum()) for n in names)
    total = sum(int(source.rows(n).sum()) * size[0] * size[1] * source.schema[n].shape[2] for n in names)
    if not names or not len(data) or any(cache.contains(DecodedFramesSource.cache_key(source, size, episodes))
                                         for episodes in (None, _own_episodes(data))):
        return DecodingCost(frames, total, 0.0)
    began, n_decoded = time.perf_counter(), 0
    for name in names:
        for _, image in data.frames(name, int(np.argmax(data.rows(name) > 0))):
            video.resize(image, size)
            n_decoded += 1
    return DecodingCost(frames, total, (time.perf_counter() - began) * frames / n_decoded)


def _column_source(data: Dataset):
    if not data.source.key:
        raise UserError("frames cannot be decoded once for a data set that was changed after it was opened",
                        hint="decode the frames first: open_dataset(path, image_size=...)")
    return data.source

"""Reads episodes padded to one length: arrays (episodes, steps, ...), or (steps, episodes, ...) with time first."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from ....core import DataError, UserError
from ....hints import columns_option
from ... import video
from ...episode import ColumnSource, Dataset
from ...sources import WrapperSource
from .column_names import FLAG_COLUMNS
from .episode_table import frame_rate
from .key_map import encoded_image_feature, stored_feature
from .read_errors import first_true
from .reader_warnings import MisreadingWarning, without_arrays

MAX_LABEL_VALUES = 1 << 20  # larger arrays are not read to see whether they say where episodes end
_FIRST_ROWS = 16  # the first row that is not empty says whether rows are encoded images
_MANY_STEPS = 10  # a second axis of this length in states and actions is one of steps or episodes, not of arms


class PaddedSource(WrapperSource):
    """Wraps a source with padded arrays so that each row of the arrays becomes an episode.

    Args:
        inner: The arrays as they are stored, with the rows of the first axis.
        lengths: Number of steps of each episode, (E,).
        steps: Number of steps that episodes are padded to. Arrays with a row after the last action have one more.
        time_first: Whether the arrays are (steps, episodes, ...).
        values: What each episode has one of, by name, (E, ...).
    """

    def __init__(self, inner: ColumnSource, lengths: np.ndarray, steps: int, time_first: bool,
                 values: Mapping[str, np.ndarray]):
        super().__init__(inner, lengths.tolist(), time_first)
        self.lengths, self._time_first, self._values, self.schema = lengths, time_first, dict(values), {}
        self._rows: dict[str, np.ndarray] = {}
        self.left_out: list[str] = []
        for name, shape in _shapes(inner).items():
            episodes, rows = _axes(shape, time_first)
            if episodes == len(lengths) and rows in (steps, steps + 1):
                self.schema[name] = stored_feature(name, shape[2:], inner.schema[name].dtype, name in FLAG_COLUMNS[:2])
                self._rows[name] = lengths + (rows - steps)
                if inner.schema[name].dtype == "uint8" and len(shape) == 3:
                    encoded = encoded_image_feature(self._stored(name, 0)[:_FIRST_ROWS], self._location(name, 0))
                    self.schema[name] = encoded or self.schema[name]
            elif shape[0] == len(lengths):
                self._values.setdefault(name, np.asarray(inner.column(name, 0)))
            else:
                self.left_out.append(f"{name}: {shape}, not a row for each step: left out")

    def rows(self, name):
        return self._rows[name]

    def column(self, name, episode):
        values, f = self._stored(name, episode), self.schema[name]
        if f.kind in ("image", "depth") and values.ndim == 2:
            location = self._location(name, episode)
            return np.stack([video.decode_frame(bytes(row).rstrip(b"\0"), f.shape, f"{location}, row {i}", f.dtype)
                             for i, row in enumerate(values)])
        return values.reshape(len(values), *f.shape).astype(values.dtype if f.kind == "string" else f.dtype, copy=False)

    def _stored(self, name: str, episode: int) -> np.ndarray:
        """Returns the rows of a column of an episode as they are stored."""
        padded, rows = self.inner.column(name, 0), int(self._rows[name][episode])
        return np.asarray(padded[:rows, episode] if self._time_first else padded[episode, :rows])

    def _location(self, name: str, episode: int) -> str:
        return f"{self.metadata['path']}, {name}, episode {episode}"

    def frames(self, name, episode):
        return enumerate(self.column(name, episode))

    def episode_metadata(self, episode):
        return {**self.inner.episode_metadata(0), **{key: v[episode].tolist() if isinstance(v[episode], np.generic |
                np.ndarray) else v[episode] for key, v in self._values.items()}}


def cut_padded(source: ColumnSource, names: Collection[str], lengths: np.ndarray, key: str,
               lists: Mapping[str, np.ndarray]) -> Dataset | None:
    """Splits padded arrays into episodes. Returns None if the arrays are not padded.

    Args:
        source: The arrays as one episode, with the rows of their first axis.
        names: The columns that have a row for each step.
        lengths: Number of steps of each episode, (E,); or a mask, (E, T), that is 1 at the steps of an episode and 0
            after them.
        key: Name of the array of lengths.
        lists: Arrays that the source does not have. Arrays of E values are metadata of the episodes.
    """
    location = f"{source.metadata['path']}, {key}"
    shapes = {name: shape for name, shape in _shapes(source).items() if name in names}
    doubt = False
    if lengths.ndim == 2 and np.isin(lengths, (0, 1)).all():
        lengths, doubt = _lengths_of_mask(lengths, location)
    elif lengths.ndim != 1 or lengths.dtype.kind not in "iuf" or (lengths != np.round(lengths)).any():
        return None
    elif any(shape[0] - int(lengths.sum()) in (0, len(lengths)) for shape in shapes.values()):
        return None  # the episodes lie end to end
    episodes = len(lengths)
    fits = [first for first in (False, True) if all(_axes(s, first)[0] == episodes for s in shapes.values())
            and (not first or any(len(s) > 2 for s in shapes.values()))]
    if not shapes or not fits or any(len(s) < 2 for s in shapes.values()):
        return None
    steps = min(_axes(shape, fits[0])[1] for shape in shapes.values())
    for name, shape in shapes.items():
        if _axes(shape, fits[0])[1] not in (steps, steps + 1):
            raise DataError(f"the shape is {shape}, but other arrays are padded to {steps} steps",
                            where=f"{source.metadata['path']}, {name}",
                            hint="pad all arrays alike, or with one row more after the last action")
    if (e := first_true((lengths < 1) | (lengths > steps))) is not None:
        raise DataError(f"episode {e} has {lengths[e]:g} steps, but the arrays have room for 1 to {steps}",
                        where=f"{location}[{e}]", hint="correct the lengths, or name another array")
    values = {name: v for name, v in lists.items() if v.ndim == 1 and len(v) == episodes}
    padded = PaddedSource(source, lengths.astype(np.int64), steps, fits[0], values)
    warnings = without_arrays(source.metadata["warnings"], (key, *values)) + padded.left_out
    if doubt or len(fits) > 1:
        warnings.append(MisreadingWarning(f"{key}: the arrays are read as (episodes, steps, ...), but might also be "
                                          "(steps, episodes, ...). If so, swap these axes"))
    rate = source.metadata.get("fps")
    if not rate and "timestamp" in padded.schema and padded.schema["timestamp"].kind != "string":
        rate = frame_rate([np.asarray(padded.column("timestamp", e), float) for e in range(episodes)])
    return Dataset(padded, {**source.metadata, "warnings": warnings, "fps": rate})


def padded_hint(shapes: Mapping[str, tuple[int, ...]], lists: Mapping[str, np.ndarray]) -> str:
    """Returns how to read arrays that look padded, because their first two axes are the same. Otherwise "".

    Args:
        shapes: Shapes of the arrays that have a row for each step.
        lists: Arrays that may be the lengths of the episodes, or a mask.
    """
    axes = [shape[:2] for shape in shapes.values()]
    if not axes or any(len(pair) < 2 for pair in axes) or all(len(shape) < 3 for shape in shapes.values()):
        return ""
    first, second = np.min(axes, axis=0).tolist()
    if any(a - first + b - second > 1 for a, b in axes):
        return ""
    is_long = len(axes) > 1 and second >= _MANY_STEPS
    orders = (first, second), (second, first)  # (episodes, steps)
    key = next((key for key, v in lists.items() if (
        v.ndim == 1 and v.dtype.kind in "iuf" and v.min() >= 1 and any(
            len(v) == episodes and (v.max() == steps or is_long and v.max() < steps) for episodes, steps in orders)
        or v.ndim == 2 and v.shape in orders and _is_mask(v))), "")
    if not key and not is_long:
        return ""
    name, shape = next((name, shape) for name, shape in shapes.items() if len(shape) > 2)
    return (f"{name} is {shape}. If that is (episodes, steps, ...) or (steps, episodes, ...), name the array of the "
            f"lengths of the episodes, or their mask: {columns_option('episode_lengths=' + (key or 'ARRAY'))}. If each "
            f"row is a step, save it as ({shape[0]}, {int(np.prod(shape[1:]))})")


def _is_mask(values: np.ndarray) -> bool:
    try:
        return bool(np.isin(values, (0, 1)).all() and _lengths_of_mask(values, "")[0].min())
    except UserError:
        return False


def _lengths_of_mask(mask: np.ndarray, where: str) -> tuple[np.ndarray, bool]:
    """Returns the steps of each episode, (E,), and whether the axes of the mask may be exchanged."""
    rising = [np.diff(mask.astype(np.int8), axis=axis) > 0 for axis in (1, 0)]
    if rising[0].any() and rising[1].any():
        e, step = np.argwhere(rising[0])[0].tolist()
        raise DataError(f"episode {e} goes on in step {step + 1}, after a step that is 0", where=f"{where}[{e}]",
                        hint="a mask is 1 at the steps of an episode, and 0 after its last")
    axis = 0 if rising[0].any() else 1
    return mask.astype(np.int64).sum(axis), not rising[0].any() and not rising[1].any()


def _shapes(source: ColumnSource) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the arrays of a source of one episode, with their rows."""
    return {name: (int(source.rows(name)[0]), *f.shape) for name, f in source.schema.items()}


def _axes(shape: tuple[int, ...], time_first: bool) -> tuple[int, int]:
    """Returns the numbers of episodes and steps of a padded array. They are -1 if it has one axis."""
    if len(shape) < 2:
        return -1, -1
    return (shape[1], shape[0]) if time_first else (shape[0], shape[1])

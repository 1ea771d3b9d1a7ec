"""Converts spaces of Gymnasium to columns: names, features, and values as arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
from gymnasium import spaces

from ..core import Feature, UserError

_LARGE, _FEWEST_VALUES = 100, 256  # offset below which rounding is harmless; as many values as a byte has


def _flatten_space(space, path=()) -> Iterator[tuple[tuple, spaces.Space]]:
    if isinstance(space, spaces.Dict):
        for key, inner in space.items():
            yield from _flatten_space(inner, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for i, inner in enumerate(space):
            yield from _flatten_space(inner, (*path, i))
    else:
        yield path, space


def space_columns(space: spaces.Space, where: str) -> dict[str, tuple[tuple, spaces.Space]]:
    """Returns the entries of an observation space by column name: the keys that lead to each entry, and its space."""
    columns: dict[str, tuple[tuple, spaces.Space]] = {}
    for path, entry in _flatten_space(space):
        if (name := _column_name(path, entry)) in columns:
            first, second = ("".join(f"[{key!r}]" for key in keys) for keys in (columns[name][0], path))
            raise UserError(f"the entries {first} and {second} of its observation are both the column {name}",
                            where=where,
                            hint="rename one of them, or leave it out (gymnasium.wrappers.FilterObservation)")
        columns[name] = path, entry
    return columns


def _column_name(path, space):
    image = image_shape(space) is not None
    name = ".".join(map(str, path)) or ("camera" if image else "state")
    return name if name.startswith("observation.") else f"observation.images.{name}" if image else f"observation.{name}"


def image_shape(space) -> tuple[int, int, int] | None:
    """Returns the shape (H, W, C) if a space is of images."""
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
        return None
    match space.shape:
        case (h, w):
            return h, w, 1
        case (h, w, (1 | 3) as c) | ((1 | 3) as c, h, w):
            return h, w, c
    return None


def space_feature(space, where) -> Feature:
    """Returns the feature (dtype, shape and kind) of the column that holds values of a Gymnasium space."""
    if (picture := image_shape(space)) is not None:
        return Feature("uint8", picture, "image")
    match space:
        case spaces.Box():
            return Feature("float32", (math.prod(space.shape),))
        case spaces.Text():
            return Feature("uint8", (_text_bytes(space),), "text")
        case _ if (counts := num_classes(space)) is not None:
            return Feature("int64", (len(counts),), "discrete", num_classes=counts)
    raise UserError(f"{space} is not a space of numbers, images, choices or text", where=where,
                    hint="wrap the environment (gymnasium.wrappers.FlattenObservation, FilterObservation)")


def action_feature(space, where) -> Feature:
    """Returns the feature of the actions of a space."""
    feature = None if isinstance(space, (spaces.Dict, spaces.Tuple)) else space_feature(space, f"{where}, action")
    if feature is None or feature.kind not in ("vector", "discrete"):
        kind = "actions of several parts" if isinstance(space, (spaces.Dict, spaces.Tuple)) else "such actions"
        raise UserError(f"{kind} are not supported: actions must be one Box, Discrete, MultiDiscrete or MultiBinary, "
                        f"not {space}", where=where,
                        hint="wrap the environment so that its action is one of these, such as one Box of all parts")
    return feature


def action_limits(space) -> dict[str, list[float]]:
    """Returns the entries "low" and "high" of the metadata. Empty if actions have no bounds."""
    if not isinstance(space, spaces.Box) or not space.is_bounded():
        return {}
    return {"low": space.low.reshape(-1).astype(float).tolist(), "high": space.high.reshape(-1).astype(float).tolist()}


def num_classes(space) -> tuple[int, ...] | None:
    """Returns the number of choices of each component. None for spaces of anything but choices."""
    match space:
        case spaces.Discrete():
            return (int(space.n),)
        case spaces.MultiDiscrete() if space.nvec.ndim == 1:
            return tuple(int(n) for n in space.nvec)
        case spaces.MultiBinary() if len(space.shape) == 1:
            return (2,) * space.shape[0]
    return None


def _text_bytes(space: spaces.Text) -> int:
    """Returns the length in UTF-8 of the longest text of a space."""
    return space.max_length * max(len(c.encode()) for c in space.character_set)


def to_array(space, value, rows) -> np.ndarray:
    """Converts a batch of one space's values to an array, (rows, *feature)."""
    if (picture := image_shape(space)) is not None:
        value = np.array(value, np.uint8)
        if space.shape[-1] not in (1, 3) and len(space.shape) == 3:
            value = np.moveaxis(value, 1, -1)
        return value.reshape(rows, *picture)
    if isinstance(space, spaces.Box):
        return np.array(value, np.float32).reshape(rows, -1)
    if isinstance(space, spaces.Text):
        out = np.zeros((rows, _text_bytes(space)), np.uint8)
        for row, text in enumerate(value):
            if len(encoded := text.encode()) > out.shape[1]:
                raise ValueError(f"{text!r} has {len(encoded)} bytes, and its longest text {out.shape[1]}")
            out[row, :len(encoded)] = np.frombuffer(encoded, np.uint8)
        return out
    return np.array(value, np.int64).reshape(rows, -1) - np.asarray(getattr(space, "start", 0), np.int64)


class RoundingCheck:
    """Finds columns (such as times or positions with a large offset) whose changes are lost in float32.

    Example:
        >>> check = RoundingCheck()
        >>> check.update("observation.state", np.array([[1e9], [1e9 + 5.0]]))
        >>> check.problems()
        {'observation.state': 'component 0 goes from 1000000000 to 1000000005, in steps of 64'}
    """

    def __init__(self):
        self._ranges: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def update(self, name: str, values: np.ndarray) -> None:
        """Adds values of a column, as the environment gave them, (rows, components)."""
        values = np.where(np.isfinite(values), values, np.nan)
        low, high = self._ranges.get(name, (values[0], values[0]))
        self._ranges[name] = np.fmin(low, np.fmin.reduce(values)), np.fmax(high, np.fmax.reduce(values))

    def problems(self) -> dict[str, str]:
        """Describes, for each column, a component that has too few float32 numbers in its range."""
        out = {}
        for name, (low, high) in self._ranges.items():
            size = np.fmax(np.abs(low), np.abs(high))
            with np.errstate(invalid="ignore", over="ignore"):
                step = np.spacing(size.astype(np.float32)).astype(np.float64)
                is_lost = (size >= _LARGE) & (high > low) & (high - low < _FEWEST_VALUES * step)
            if is_lost.any():
                i = int(is_lost.argmax())
                out[name] = f"component {i} goes from {low[i]:.12g} to {high[i]:.12g}, in steps of {step[i]:.2g}"
        return out


def add_batch_axis(value):
    """Turns a single observation into a batch of one."""
    if isinstance(value, Mapping):
        return {k: add_batch_axis(v) for k, v in value.items()}
    return tuple(add_batch_axis(v) for v in value) if isinstance(value, tuple) else [value]


def find_misfit(space: spaces.Space, value, name: str) -> str:
    """Describes how the structure of a value differs from a space. Empty if it does not."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts = space.items() if isinstance(space, spaces.Dict) else enumerate(space)
        if not isinstance(value, Mapping if isinstance(space, spaces.Dict) else (tuple, list)):
            return f"{name} is a {type(value).__name__}, and its space is a {type(space).__name__}"
        for key, inner in parts:
            if key not in (value if isinstance(value, Mapping) else range(len(value))):
                return f"{name} has no {key!r}, which its space has"
            if problem := find_misfit(inner, value[key], f"{name}[{key!r}]"):
                return problem
        return ""
    if isinstance(space, spaces.Text):
        return "" if isinstance(value, str) else f"{name} is {value!r}, and its space is text"
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        return f"{name} is not an array"
    if array.shape != (space.shape or ()):
        return f"{name} has shape {array.shape}, and its space has {space.shape}"
    numbers = "biuf" if isinstance(space, spaces.Box) and space.dtype.kind == "f" else "biu"
    if array.dtype.kind not in numbers and not (isinstance(space, spaces.Box) and array.dtype.kind in "biuf"
                                                and image_shape(space) is None):
        return f"{name} holds {array.dtype} and its space {space.dtype}"
    counts = num_classes(space)
    first = np.asarray(getattr(space, "start", 0))
    if counts is not None and not ((array >= first) & (array < first + np.reshape(counts, array.shape))).all():
        return f"{name} is {value!r}, which is not in {space}"
    return ""

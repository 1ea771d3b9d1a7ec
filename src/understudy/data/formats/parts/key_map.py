"""Mapping between arrays and columns, and checks that the array formats share."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ....core import Feature, UserError, role
from ... import video
from .read_errors import damaged, first_true

Match = TypeVar("Match")
END_COLUMNS = ("next.terminated", "next.truncated")
MAX_METADATA_VALUES = 1000  # largest number of values of an array that is kept as metadata


@dataclass(frozen=True)
class KeyMap:
    """The names that a format gives its arrays, and the columns that they are read as.

    Args:
        columns: Names of columns that differ from the names of their arrays, by key.
        observation: Key of the array that is the only observation: ``observation.state``, or an image.
        group: Prefix of the keys of observations, such as ``"obs/"``.
        images: Prefix of a camera within the group, such as ``"images/"``.
        separator: Separator of the parts of a key. In a column it becomes a dot.
        reserved: Columns that cannot be stored, because arrays of their names mean something else.

    Example:
        >>> KeyMap({"actions": "action"}, group="obs/").column("obs/wrist", Feature("uint8", (8, 8, 3), "image"))
        'observation.images.wrist'
    """

    columns: Mapping[str, str]
    observation: str = ""
    group: str = ""
    images: str = ""
    separator: str = "/"
    reserved: frozenset[str] = frozenset()

    def column(self, key: str, feature: Feature | None = None) -> str:
        """Returns the column that an array is read as. Images are recognized by the feature."""
        camera = feature is not None and feature.kind == "image"
        if key in self.columns:
            return self.columns[key]
        if key == self.observation:
            return "observation.images.image" if camera else "observation.state"
        if not self.group or not key.startswith(self.group):
            return self._dotted(key)
        within = key.removeprefix(self.group)
        if camera and within.startswith(self.images):
            return f"observation.images.{self._dotted(within.removeprefix(self.images))}"
        return f"observation.{self._dotted(within)}"

    def _dotted(self, key: str) -> str:
        return key.replace(self.separator, ".") if self.separator else key

    def key(self, column: str, feature: Feature | None = None) -> str:
        """Returns the key of the array that a column is written to. Images are recognized by the feature."""
        own = {name: key for key, name in self.columns.items()}
        if column in own or not self.group or not column.startswith("observation."):
            return own.get(column, column)
        within = column.removeprefix("observation.")
        if feature is not None and feature.kind == "image" and within.startswith("images."):
            return self.group + self.images + within.removeprefix("images.")
        return self.group + within

    def schema(self, features: Mapping[str, Feature], path: object) -> tuple[dict[str, Feature], dict[str, str]]:
        """Returns the features of the columns of a file, and the key of each column."""
        schema: dict[str, Feature] = {}
        keys: dict[str, str] = {}
        for key, feature in features.items():
            column = self.column(key, feature)
            add_column(keys, column, key, path)
            schema[column] = feature
        return schema, keys


def add_column(keys: dict[str, str], column: str, key: str, path: object) -> None:
    """Adds the key of a column to `keys`."""
    if column in keys:
        raise UserError(f"{keys[column]} and {key} are both the column {column}", where=f"{path}, {key}",
                        hint="remove one of them")
    keys[column] = key


def common_arrays(episodes: Sequence[Mapping[str, Match]], alike: Callable[[Match], Any],
                  where: Callable[[int, str], str], optional: Callable[[str], bool] = lambda key: False,
                  left_out: Callable[[str, int], None] = lambda key, episode: None) -> dict[str, Match]:
    """Returns the arrays that all episodes have, as they are in the first episode.

    Args:
        alike: Returns what must be equal in all episodes, such as dtype and shape.
        where: Names the file and key of an array of an episode.
        optional: Whether an array may be missing in some episodes. It is then left out. By default none may.
        left_out: Called with an optional array and the first episode that lacks it.
    """
    out: dict[str, Match] = {}
    hint = "leave the episode out, or remove the array from all episodes"
    for key in dict.fromkeys(k for arrays in episodes for k in arrays):
        without = next((e for e, arrays in enumerate(episodes) if key not in arrays), None)
        if without is not None and optional(key):
            left_out(key, without)
            continue
        if without is not None:
            raise UserError(f"{key} is missing, but other episodes have it", where=where(without, key), hint=hint)
        first = alike(episodes[0][key])
        different_episode = next((e for e, arrays in enumerate(episodes) if alike(arrays[key]) != first), None)
        if different_episode is not None:
            different = alike(episodes[different_episode][key])
            raise UserError(f"it is {describe_kind(different)}, but {describe_kind(first)} in the first episode",
                            where=where(different_episode, key), hint=hint)
        out[key] = episodes[0][key]
    return out


def describe_kind(alike: Any) -> str:
    """Returns a dtype and shape as text, for an error message."""
    return " ".join(map(str, alike)) if isinstance(alike, tuple) else str(alike)


def is_metadata(column: str, shape: tuple[int, ...], rows: Collection[int]) -> bool:
    """Returns whether an array describes an episode, such as a camera matrix, and is not a column.

    Such an array has few values, and does not have a row for each step. It does not have the name of an observation, an
    action or an outcome, or of `infos` of the steps.

    Args:
        column: The column that the array would be.
        rows: The numbers of rows that a column may have.
    """
    has_steps = role(column) != "other" or column.startswith(("infos.", "next_"))
    return not has_steps and (not shape or shape[0] not in rows) and math.prod(shape) <= MAX_METADATA_VALUES


def metadata(kind: str, path: Path, warnings: list[str], version: str = "", fps: Any = None,
             robot_type: Any = None) -> dict[str, Any]:
    """Builds the metadata of a data set, for `Dataset.metadata`.

    Args:
        fps: Steps per second. Anything but a positive number becomes None.
        robot_type: Name of the robot. Anything but text becomes None.
    """
    return {"format": kind, "version": version, "path": str(path), "fps": float(fps) if is_rate(fps) else None,
            "robot_type": robot_type if isinstance(robot_type, str) else None, "warnings": warnings}


def is_rate(value: Any) -> bool:
    """Returns whether a value can be a rate: a positive, finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def checked_rate(fps: Any, where: str) -> float:
    """Returns the steps per second that the user gave as a float. They must be positive and finite."""
    if isinstance(fps, np.generic):
        fps = fps.item()
    if not is_rate(fps):
        raise UserError(f"the steps per second must be a number above 0, not {fps}", where=where,
                        hint="correct it, or leave it out")
    return float(fps)


def lengths_from_ends(ends: np.ndarray, where: str, hint: str) -> np.ndarray:
    """Returns the number of steps of each episode, (E,) int64, from their exclusive ends.

    Args:
        ends: Step after the last of each episode, counted over all episodes, (E,). Increasing integers.
    """
    if ends.ndim != 1 or ends.dtype.kind not in "iu":
        raise UserError(f"it must be integers of shape (episodes,), but is {ends.dtype} {ends.shape}",
                        where=where, hint=hint)
    if not len(ends):
        raise UserError("there are no episodes", where=where, hint="save the end of one at least")
    lengths = np.diff(ends.astype(np.int64), prepend=0)
    if (e := first_true(lengths < 1)) is not None:
        raise UserError(f"the ends must increase, but {ends[e]} follows {ends[e - 1] if e else 0}",
                        where=f"{where}[{e}]", hint=hint)
    return lengths


def end_flags(lengths: np.ndarray, terminated: np.ndarray) -> dict[str, np.ndarray]:
    """Builds the columns next.terminated and next.truncated with all episodes end to end, (N,) bool each.

    Args:
        lengths: Number of steps of each episode, (E,).
        terminated: True if the environment ended the episode, False if it was cut off, (E,) bool.
    """
    last = np.cumsum(lengths) - 1
    flags = {name: np.zeros(int(lengths.sum()), bool) for name in END_COLUMNS}
    flags["next.terminated"][last[terminated]] = True
    flags["next.truncated"][last[~terminated]] = True
    return flags


def encoded_image_feature(rows: Iterable[Any], where: str) -> Feature | None:
    """Returns the feature of images that are stored as PNG or JPEG bytes, from the first row that is not empty. None
    for other values. Zeros may pad the bytes."""
    data = next((text for row in rows if (text := bytes(row).rstrip(b"\0"))), b"")
    return image_feature(data, where) if video.image_kind(data) else None


def image_feature(data: bytes, where: str) -> Feature:
    """Returns the feature of decoded images, given one image that is encoded as PNG or JPEG."""
    if video.is_16_bit_gray(data):
        return Feature("uint16", video.decode_image(data, 1, where, "uint16").shape, "depth")
    return Feature("uint8", video.decode_image(data, 3, where).shape, "image")


def decoded_images(encoded: Iterable[bytes], channels: int, first: int, where: str) -> np.ndarray:
    """Decodes images of one shape to (rows, H, W, C) uint8. Zeros that pad the encoded images are ignored.

    Args:
        channels: 1 for gray, 3 for RGB.
        first: Number of the first row, for error messages.
    """
    images = [video.decode_image(bytes(v).rstrip(b"\0"), channels, f"{where}, row {row}")
              for row, v in enumerate(encoded, first)]
    different_image = next((i for i, image in enumerate(images) if image.shape != images[0].shape), None)
    if different_image is not None:
        raise damaged(f"the image has the shape {images[different_image].shape}, but others have {images[0].shape}",
                      f"{where}, row {first + different_image}")
    return np.stack(images)


@lru_cache(1024)  # files have thousands of arrays of a few kinds
def stored_feature(column: str, shape: tuple[int, ...], dtype: np.dtype | str, is_flag: bool = False,
                   has_text: bool = False) -> Feature:
    """Returns the feature of a column as it is read from a file.

    An outcome has one number per step. Bytes are numbers unless they make an image, or text if `has_text`.

    Args:
        shape: Shape of one row.
        is_flag: Whether the column is read as bool.
        has_text: Whether the format stores text as bytes.
    """
    shape = () if column.startswith("next.") and tuple(shape) == (1,) else tuple(shape)
    dtype = np.dtype(bool) if is_flag else np.dtype(dtype).newbyteorder("=")
    if dtype == np.uint8 and len(shape) != 3 and not has_text or column == "next.reward" and dtype.kind in "iu":
        return Feature(dtype.name, shape)  # rewards are amounts, also whole ones
    return Feature.from_array(np.empty((0, *shape), dtype))

"""Recognizes image columns in another layout than uint8 (height, width, channels)."""

from __future__ import annotations

from collections.abc import Iterable

from ..core import DataError, Feature, Schema

_SMALLEST_IMAGE = 8  # pixels; rotation matrices, (3, 3), and grids of few cells, (3, 5, C), are not images
_PIXEL_VALUES = 256


def image_layout_problem(name: str, feature: Feature, is_image: bool = False) -> tuple[str, str] | None:
    """Describes why a column of images would be misread, such as by swapped axes. None if it would not.

    Encoders read images as uint8 (H, W, C) with values from 0 to 255. PyTorch and LeRobot hold images in memory as
    floats (C, H, W) from 0 to 1. Arrays of other types are judged by the name of their column: one that is called
    `observation.image` or `observation.images.NAME` holds images. Depth maps stay numbers: "depth" is in their name.

    Args:
        is_image: Whether the column is known to hold images, whatever its name.

    Returns:
        What is wrong, and how to convert the column. None if nothing is wrong.
    """
    shape, dtype = feature.shape, feature.dtype
    is_image = is_image or name.startswith("observation.image") and "depth" not in name.lower()
    first = len(shape) == 3 and shape[0] in (1, 3) and min(shape[1:]) >= _SMALLEST_IMAGE
    last = len(shape) == 3 and shape[2] in (1, 3) and min(shape[:2]) >= _SMALLEST_IMAGE
    plane = len(shape) == 2 and min(shape) >= _SMALLEST_IMAGE
    if dtype == "uint8":
        if len(shape) == 3 and 0 in shape:
            return f"{name} is uint8 {shape} in each step: the images have no pixels", "leave the column out"
        if first:
            return _problem(name, feature, "the channels come first", "column.transpose(0, 2, 3, 1)")
        if plane and feature.kind == "text":
            return _problem(name, feature, "it has no axis for the channels, and would be read as text",
                            "column[..., None]")
        if len(shape) > 3:
            return _problem(name, feature, "it has more than three axes", None)
        return None
    is_integer = feature.kind == "discrete"
    classes = max(feature.num_classes or (0,)) if is_integer else 0
    is_pixels = 64 < classes <= _PIXEL_VALUES and (first or last)  # grids of cells have few classes
    if not (is_pixels or is_image and (first or last or plane)):
        return None
    layout = "column.transpose(0, 2, 3, 1)" if first else "column[..., None]" if plane else "column"
    if is_integer:
        return _problem(name, feature, f"its type is {dtype}, which is read as choices", f"{layout}.astype('uint8')")
    if dtype == "bool":
        return _problem(name, feature, "its type is bool", f"{layout}.astype('uint8') * 255")
    return _problem(name, feature, f"its type is {dtype}, which is read as a vector",
                    f"({layout} * 255).round().astype('uint8') for values from 0 to 1")


def _problem(name: str, feature: Feature, what: str, code: str | None) -> tuple[str, str]:
    convert = "store each camera in a column of its own" if code is None else f"convert it: {code}"
    hint = f"images are uint8 (height, width, channels) with values from 0 to 255; {convert}"
    if name.startswith("observation.image") and feature.dtype != "uint8":
        hint += ". If it holds no images, give it a name that does not begin with observation.image"
    return f"{name} is {feature.dtype} {feature.shape} in each step: {what}", hint


def check_image_layout(features: Schema, columns: Iterable[str], where: str = "data set") -> None:
    """Raises an error for columns that hold images in another layout than uint8 (H, W, C)."""
    for name in columns:
        if (problem := image_layout_problem(name, features[name])) is not None:
            raise DataError(problem[0], where=where, hint=problem[1])

"""A small rasterizer, which paints discs and rectangles with smooth edges into many pictures at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

BACKGROUND = (246, 244, 238)
COLOR_OF_ROLE: Mapping[str, tuple[int, int, int]] = {
    "start": (205, 214, 224), "waypoint": (239, 196, 106), "goal": (142, 201, 146), "obstacle": (92, 96, 112),
    "block": (88, 120, 190), "agent": (214, 84, 72)}


class Canvas:
    """Canvas of square images, which are painted for all rows at once. The y axis points up.

    Args:
        size: Width and height of an image, in pixels.
    """

    def __init__(self, rows: int, size: int, low: tuple[float, float], side: float):
        self.size, self.low, self.pixel = size, np.array(low, np.float32), side / size
        self.image = np.empty((rows, size, size, 3), np.uint8)
        self.image[:] = BACKGROUND

    def circle(self, at: np.ndarray, radius: float, color: tuple[int, int, int]) -> None:
        """Paints one disc into each image.

        Args:
            at: Centers, (rows, 2).
            color: Red, green and blue, 0 to 255.
        """
        self._paint(at, radius, lambda x, y: np.sqrt(x * x + y * y) - radius, color)

    def box(self, at: np.ndarray, heading: np.ndarray, half: tuple[float, float],
            color: tuple[int, int, int] | np.ndarray) -> None:
        """Paints one rectangle into each image.

        Args:
            at: Centers, (rows, 2).
            heading: Cosine and sine of the angle, (rows, 2).
            half: Half of the width and of the height.
            color: Red, green and blue, 0 to 255: of all boxes, or of each, (rows, 3).
        """
        cos, sin = heading[:, 0, None, None], heading[:, 1, None, None]

        def distance(x, y):
            x, y = np.abs(cos * x + sin * y) - half[0], np.abs(cos * y - sin * x) - half[1]
            outside = np.sqrt(np.maximum(x, 0) ** 2 + np.maximum(y, 0) ** 2)
            return outside + np.minimum(np.maximum(x, y), 0)
        self._paint(at, math.hypot(*half), distance, color)

    def _paint(self, at, reach, distance, color):
        """Paints a shape's pixels within the distance `reach` of its center `at`."""
        n = min(self.size, math.ceil(2 * reach / self.pixel) + 3)
        place = (at - self.low) / self.pixel  # in pixels, from the lower left corner
        first = np.clip(np.floor(place - n / 2), 0, self.size - n).astype(np.int64)
        column, line = (first[:, i, None] + np.arange(n) for i in (0, 1))
        x = (column.astype(np.float32) + 0.5 - place[:, 0, None]) * self.pixel
        y = (line.astype(np.float32) + 0.5 - place[:, 1, None]) * self.pixel
        cover = np.clip(0.5 - distance(x[:, None, :], y[:, :, None]) / self.pixel, 0, 1)[..., None]
        pixels = np.arange(len(at))[:, None, None], self.size - 1 - line[:, :, None], column[:, None, :]
        under = self.image[pixels].astype(np.float32)
        paint = np.array(color, np.float32).reshape(-1, 1, 1, 3)
        self.image[pixels] = np.rint(under + cover * (paint - under)).astype(np.uint8)


def render_map(plane: Mapping[str, Any], shapes: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """Renders a map as an image.

    Args:
        shapes: Further shapes in the form of the map's, painted over them. A box has "half" and, if rotated, "heading".

    Returns:
        The image, (256, 256, 3) uint8.
    """
    canvas = Canvas(1, 256, *_map_square(plane))
    for shape in (*plane["shapes"], *shapes):
        at, color = np.array([shape["at"]], np.float32), COLOR_OF_ROLE[shape["role"]]
        if shape["kind"] == "circle":
            canvas.circle(at, shape["radius"], color)
        else:
            canvas.box(at, np.array([shape.get("heading", (1, 0))], np.float32), shape["half"], color)
    return canvas.image[0]


def map_point(plane: Mapping[str, Any], across: float, down: float) -> tuple[float, float]:
    """Returns the position on a map that its image shows at a point, the inverse of `render_map`.

    Args:
        plane: The map, see `envs.base.PlanarMap.map`.
        across: Distance of the point from the left edge of the image, from 0 to 1.
        down: Distance from the upper edge, from 0 to 1.
    """
    (x, y), side = _map_square(plane)
    return x + across * side, y + (1 - down) * side


def _map_square(plane: Mapping[str, Any]) -> tuple[tuple[float, float], float]:
    """Returns the lower left corner and the side of the smallest centered square that contains a map."""
    (x_min, x_max), (y_min, y_max) = plane["x"], plane["y"]
    side = max(x_max - x_min, y_max - y_min)
    return ((x_min + x_max - side) / 2, (y_min + y_max - side) / 2), side

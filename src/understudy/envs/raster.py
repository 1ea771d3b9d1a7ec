"""Pictures of the toys: discs and rectangles, as pixels or as a list of shapes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .base import Renderable

BACKGROUND = (246, 244, 238)
COLOR_OF_ROLE: Mapping[str, tuple[int, int, int]] = {
    "start": (205, 214, 224), "waypoint": (239, 196, 106), "goal": (142, 201, 146), "obstacle": (92, 96, 112),
    "block": (88, 120, 190), "agent": (214, 84, 72)}


Square = tuple[tuple[float, float], float]  # lower left corner and side


class Surface(ABC):
    """Something that discs and rectangles are drawn on, later ones over earlier ones. The y axis points up."""

    @abstractmethod
    def circle(self, at: np.ndarray, radius: float, color: tuple[int, int, int]) -> None:
        """Draws one disc into each picture.

        Args:
            at: Centers, (rows, 2).
            color: Red, green and blue, 0 to 255.
        """

    @abstractmethod
    def box(self, at: np.ndarray, heading: np.ndarray, half: tuple[float, float],
            color: tuple[int, int, int] | np.ndarray) -> None:
        """Draws one rectangle into each picture.

        Args:
            at: Centers, (rows, 2).
            heading: Cosine and sine of the angle, (rows, 2).
            half: Half of the width and of the height.
            color: Red, green and blue, 0 to 255: of all boxes, or of each, (rows, 3).
        """


class Canvas(Surface):
    """Images of a square, painted for all rows at once, with edges as wide as one pixel.

    Args:
        size: Width and height of an image, in pixels.
    """

    def __init__(self, rows: int, size: int, low: tuple[float, float], side: float):
        self.size, self.low, self.pixel = size, np.array(low, np.float32), side / size
        self.image = np.empty((rows, size, size, 3), np.uint8)
        self.image[:] = BACKGROUND

    def circle(self, at, radius, color):
        self._paint(at, radius, lambda x, y: np.sqrt(x * x + y * y) - radius, color)

    def box(self, at, heading, half, color):
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


class ShapeList(Surface):
    """The shapes of one picture as JSON values, in fractions of its side, for a page that draws them itself.

    Attributes:
        shapes: Dicts with "at", (x, y) from the upper left corner with y down, and "color", "#rrggbb". A disc has
            "radius". A rectangle has "half", half of its width and height, and "heading", cosine and sine of its angle.
    """

    def __init__(self, square: Square):
        (self._low, self._side), self.shapes = square, list[dict[str, Any]]()

    def circle(self, at, radius, color):
        self._add(at, color, radius=_rounded(radius / self._side))

    def box(self, at, heading, half, color):
        cos, sin = heading[0]
        self._add(at, color, half=[_rounded(h / self._side) for h in half], heading=[_rounded(cos), _rounded(-sin)])

    def _add(self, at, color, **shape):
        x, y = ((at[0] - np.array(self._low)) / self._side).tolist()
        red, green, blue = np.asarray(color).reshape(-1, 3)[0].tolist()
        self.shapes.append({"at": [_rounded(x), _rounded(1 - y)], "color": f"#{red:02x}{green:02x}{blue:02x}", **shape})


def _rounded(number: float) -> float:
    return round(float(number), 4)


class Drawable(Renderable):
    """An environment whose pictures consist of discs and rectangles, so that they can be drawn in any size.

    Attributes:
        square: What a picture shows.
    """

    @property
    @abstractmethod
    def square(self) -> Square: ...

    @abstractmethod
    def draw(self, surface: Surface, row: int) -> None:
        """Draws one row on a surface for one picture of `square`."""

    def frame(self, row):
        canvas = Canvas(1, 256, *self.square)
        self.draw(canvas, row)
        return canvas.image[0]


def draw_map(surface: Surface, plane: Mapping[str, Any], shapes: Iterable[Mapping[str, Any]]) -> None:
    """Draws a map, and further shapes over it.

    Args:
        plane: The map, see `envs.base.PlanarMap.map`.
        shapes: Shapes in the form of the map's. A box has "half" and, if rotated, "heading".
    """
    for shape in (*plane["shapes"], *shapes):
        at, color = np.array([shape["at"]], np.float32), COLOR_OF_ROLE[shape["role"]]
        if shape["kind"] == "circle":
            surface.circle(at, shape["radius"], color)
        else:
            surface.box(at, np.array([shape.get("heading", (1, 0))], np.float32), shape["half"], color)


def render_map(plane: Mapping[str, Any], shapes: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """Renders what `draw_map` draws as an image, (256, 256, 3) uint8."""
    canvas = Canvas(1, 256, *map_square(plane))
    draw_map(canvas, plane, shapes)
    return canvas.image[0]


def map_point(plane: Mapping[str, Any], across: float, down: float) -> tuple[float, float]:
    """Returns the position on a map that its image shows at a point, the inverse of `render_map`.

    Args:
        plane: The map, see `envs.base.PlanarMap.map`.
        across: Distance of the point from the left edge of the image, from 0 to 1.
        down: Distance from the upper edge, from 0 to 1.
    """
    (x, y), side = map_square(plane)
    return x + across * side, y + (1 - down) * side


def map_square(plane: Mapping[str, Any]) -> Square:
    """Returns the smallest square around the middle of a map that contains it."""
    (x_min, x_max), (y_min, y_max) = plane["x"], plane["y"]
    side = max(x_max - x_min, y_max - y_min)
    return ((x_min + x_max - side) / 2, (y_min + y_max - side) / 2), side

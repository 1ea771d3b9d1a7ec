"""A small rasteriser: shapes by their signed distance, many pictures at once, edges as wide as one pixel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

PAPER = (246, 244, 238)
INK: Mapping[str, tuple[int, int, int]] = {
    "start": (205, 214, 224), "waypoint": (239, 196, 106), "goal": (142, 201, 146), "obstacle": (92, 96, 112),
    "block": (88, 120, 190), "agent": (214, 84, 72)}


class Canvas:
    """`rows` pictures of size x size pixels of the square with lower left corner `low` and side `side`; y is up."""

    def __init__(self, rows: int, size: int, low: tuple[float, float], side: float):
        self.pixel = np.float32(side / size)
        centre = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * self.pixel
        self.x = (np.float32(low[0]) + centre)[None, None, :]
        self.y = (np.float32(low[1]) + centre[::-1])[None, :, None]
        self.image = np.empty((rows, size, size, 3), np.float32)
        self.image[:] = PAPER

    def circle(self, at: np.ndarray, radius: float, colour: tuple[int, int, int]) -> None:
        """at (rows, 2)."""
        x, y = self._from(at)
        self._paint(np.sqrt(x * x + y * y) - np.float32(radius), colour)

    def box(self, at: np.ndarray, heading: np.ndarray, half: tuple[float, float], colour: tuple[int, int, int]) -> None:
        """at (rows, 2), heading (rows, 2): cosine and sine of its angle; half: of its width and height."""
        x, y = self._from(at)
        cos, sin = heading[:, 0, None, None], heading[:, 1, None, None]
        x, y = np.abs(cos * x + sin * y) - np.float32(half[0]), np.abs(cos * y - sin * x) - np.float32(half[1])
        outside = np.sqrt(np.maximum(x, 0) ** 2 + np.maximum(y, 0) ** 2)
        self._paint(outside + np.minimum(np.maximum(x, y), 0), colour)

    def pixels(self) -> np.ndarray:
        """(rows, size, size, 3) uint8."""
        return np.rint(self.image).astype(np.uint8)

    def _from(self, at):
        return self.x - at[:, 0, None, None], self.y - at[:, 1, None, None]

    def _paint(self, distance, colour):
        cover = np.clip(np.float32(0.5) - distance / self.pixel, 0, 1)[..., None]
        self.image += cover * (np.array(colour, np.float32) - self.image)


def picture(plane: Mapping[str, Any], shapes: Iterable[Mapping[str, Any]], size: int = 256) -> np.ndarray:
    """(size, size, 3) uint8: the circles and boxes of a map (see envs.base.Plane), and over them `shapes` of the
    same form. A box has "half" and, if turned, "heading"."""
    (left, right), (bottom, top) = plane["x"], plane["y"]
    side = max(right - left, top - bottom)
    low = ((left + right - side) / 2, (bottom + top - side) / 2)
    canvas = Canvas(1, size, low, side)
    for shape in (*plane["shapes"], *shapes):
        at, colour = np.array([shape["at"]], np.float32), INK[shape["role"]]
        if shape["kind"] == "circle":
            canvas.circle(at, shape["radius"], colour)
        else:
            canvas.box(at, np.array([shape.get("heading", (1, 0))], np.float32), shape["half"], colour)
    return canvas.pixels()[0]

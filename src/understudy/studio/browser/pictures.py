"""Pictures and charts of recorded steps for the studio, as shapes and as SVG."""

from __future__ import annotations

import base64
import html
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ...data.episode import Episode
from ...envs import make
from ...envs.raster import BACKGROUND, Drawable, ShapeList
from ...envs.toy import Toy
from ..html_page import encode_jpeg

COLORS = ("var(--studio-first)", "var(--studio-second)")  # of the components of an action, see studio.css
WIDTH, HEIGHT = 560, 120  # of a chart


class RecordedPictures:
    """Pictures of recorded steps: the environment draws the state that each step holds.

    Args:
        env: Name of a toy.
    """

    def __init__(self, env: str):
        self._env, self._lock = make(env, 1), threading.Lock()
        assert isinstance(self._env, Toy) and isinstance(self._env, Drawable)

    def shapes(self, episode: Episode, step: int) -> list[dict[str, Any]]:
        """Returns the shapes of a step, as `ShapeList` does."""
        columns = {name: torch.tensor(episode.steps[name][step:step + 1]) for name in self._env.state_columns}
        surface = ShapeList(self._env.square)
        with self._lock:
            self._env.restore(torch.arange(1), columns)
            self._env.draw(surface, 0)
        return surface.shapes


def camera_shapes(frames: Sequence[np.ndarray], largest: int) -> list[dict[str, Any]]:
    """Returns frames of cameras as shapes beside or below each other, as large as they can be.

    Args:
        frames: The frame of each camera, (H, W, C) uint8.
        largest: Longer side of each picture that is sent as JPEG, at most (px).
    """
    count, high, wide = len(frames), *(max(sizes) for sizes in zip(*(f.shape[:2] for f in frames), strict=True))
    across = max(range(1, count + 1), key=lambda n: min(1 / (n * wide), 1 / (math.ceil(count / n) * high)))
    down, shapes = math.ceil(count / across), []
    scale = 0.49 * min(1 / (across * wide), 1 / (down * high))
    for number, frame in enumerate(frames):
        stride = max(1, -(-max(frame.shape[:2]) // largest))
        url = "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(frame[::stride, ::stride])).decode()
        at = [(number % across + 0.5) / across, (number // across + 0.5) / down]
        shapes.append({"image": url, "at": at, "half": [scale * frame.shape[1], scale * frame.shape[0]]})
    return shapes


def joint_shapes(position: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[dict[str, Any]]:
    """Returns joints as bars from their lowest to their highest position (A,), for a robot without a camera."""
    share = np.clip((position - low) / np.maximum(high - low, 1e-9), 0.0, 1.0)
    return [{"at": [float(width) / 2, (joint + 0.5) / len(share)], "half": [float(width) / 2, 0.3 / len(share)],
             "heading": [1.0, 0.0], "color": "#00796b"} for joint, width in enumerate(share)]


def picture_svg(shapes: Sequence[Mapping[str, Any]], side: int) -> str:
    """Returns a picture as SVG.

    Args:
        side: Width and height, px.
    """
    def element(shape: Mapping[str, Any]) -> str:
        x, y = shape["at"]
        if "image" in shape:
            wide, high = shape["half"]
            return (f'<image href="{shape["image"]}" x="{x - wide}" y="{y - high}" width="{2 * wide}" '
                    f'height="{2 * high}" preserveAspectRatio="none"/>')
        if "radius" in shape:
            return f'<circle cx="{x}" cy="{y}" r="{shape["radius"]}" fill="{shape["color"]}"/>'
        (wide, high), (cos, sin) = shape["half"], shape["heading"]
        return (f'<rect x="{-wide}" y="{-high}" width="{2 * wide}" height="{2 * high}" fill="{shape["color"]}" '
                f'transform="matrix({cos} {sin} {-sin} {cos} {x} {y})"/>')
    red, green, blue = BACKGROUND
    return (f'<svg viewBox="0 0 1 1" width="{side}" height="{side}" aria-hidden="true">'
            f'<rect width="1" height="1" fill="rgb({red},{green},{blue})"/>{"".join(map(element, shapes))}</svg>')


def action_chart_svg(episode: Episode, start: int, stop: int, step: int) -> str:
    """Returns the actions of an episode over its steps, as SVG.

    Args:
        start: First step that is learned. What is before it is shaded.
        stop: Step after the last one that is learned.
        step: Where a line marks the step that is shown.
    """
    actions = np.asarray(episode.steps["action"], float).reshape(len(episode), -1)
    low, high = actions.min(), actions.max()
    scale = WIDTH / max(len(actions), 1)

    def line(component: int) -> str:
        levels = HEIGHT - 6 - (actions[:, component] - low) / max(high - low, 1e-9) * (HEIGHT - 12)
        color = COLORS[component] if component < len(COLORS) else f"hsl({137 * component % 360} 60% 50%)"
        points = " ".join(f"{(i + 0.5) * scale:.1f},{y:.1f}" for i, y in enumerate(levels))
        return f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>'

    def shade(first: int, last: int) -> str:
        return (f'<rect x="{first * scale:.1f}" width="{(last - first) * scale:.1f}" height="{HEIGHT}" '
                'fill="currentColor" opacity="0.15"/>')
    at = (step + 0.5) * scale
    label = html.escape(f"Actions over {len(actions)} steps, from {low:.2g} to {high:.2g}. Step {step} is marked.")
    return (f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}" style="width: 100%">'
            f'{shade(0, start)}{shade(stop, len(actions))}{"".join(map(line, range(actions.shape[1])))}'
            f'<line x1="{at:.1f}" x2="{at:.1f}" y2="{HEIGHT}" stroke="currentColor"/></svg>')


def interval_svg(estimate: float, low: float, high: float) -> str:
    """Returns a bar from 0 to a rate, with the interval of the rate as a line, as SVG.

    Args:
        estimate: From 0 to 1, as all of them.
    """
    def x(rate: float) -> str:
        return f"{8 + rate * (WIDTH - 16):.1f}"
    ends = "".join(f'<line x1="{x(rate)}" x2="{x(rate)}" y1="4" y2="20" stroke="currentColor" stroke-width="2"/>'
                   for rate in (low, high))
    return (f'<svg viewBox="0 0 {WIDTH} 24" aria-hidden="true" style="width: 100%">'
            f'<rect x="8" y="2" width="{WIDTH - 16}" height="20" fill="currentColor" opacity="0.1"/>'
            f'<rect x="8" y="2" width="{estimate * (WIDTH - 16):.1f}" height="20" fill="{COLORS[0]}"/>'
            f'<line x1="{x(low)}" x2="{x(high)}" y1="12" y2="12" stroke="currentColor" stroke-width="2"/>{ends}</svg>')

"""A chosen episode as something to look at."""

from __future__ import annotations

import numpy as np

from ..data.episode import Episode
from ..data.video import resize
from . import plots


def film_strip(episode: Episode, max_frames: int = 8, side: int = 192) -> plots.Figure | None:
    """Frames of an episode's first camera, evenly spaced, the first and the last included.

    Args:
        side: Largest height and width of a frame, pixels.

    Returns:
        The figure. None without a camera.
    """
    camera = _camera(episode)
    if camera is None:
        return None
    frames = np.asarray(episode.steps[camera])
    steps = np.unique(np.linspace(0, len(frames) - 1, min(max_frames, len(frames))).round().astype(int))
    chosen, (high, wide) = frames[steps], frames.shape[1:3]
    if max(high, wide) > side:
        scale = side / max(high, wide)
        chosen = resize(chosen, (max(round(high * scale), 1), max(round(wide * scale), 1)))
    pictures = [_to_rgb(f) for f in chosen]
    return plots.film_strip(pictures, [f"step {t}" for t in steps], f"{camera} over an episode")


def _camera(episode: Episode) -> str | None:
    return next((k for k, f in episode.features().items() if f.kind == "image"), None)


def _to_rgb(frame: np.ndarray) -> np.ndarray:
    """(H, W, 3) of grey, color, or color and more."""
    return np.repeat(frame, 3, -1) if frame.shape[-1] == 1 else frame[..., :3]

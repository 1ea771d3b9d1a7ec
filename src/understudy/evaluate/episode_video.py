"""Film strips for reports: several frames of an episode's camera in a row."""

from __future__ import annotations

import numpy as np

from ..data.episode import Episode
from ..data.video import resize
from . import plots
from .behavior.scaling import evenly_spaced_indices

SIDE = 192  # largest height and width of a frame, pixels


def film_strip(episode: Episode, max_frames: int = 8) -> plots.Figure | None:
    """Returns frames of an episode's first camera, evenly spaced, first and last included. None without a camera."""
    camera = first_camera(episode)
    if camera is None:
        return None
    frames = np.asarray(episode.steps[camera])
    steps = evenly_spaced_indices(len(frames), max_frames)
    pictures = [_to_rgb(f) for f in shrink(frames[steps])]
    return plots.film_strip(pictures, [f"step {t}" for t in steps], f"{camera} over an episode")


def first_camera(episode: Episode) -> str | None:
    """Returns the name of the first image column."""
    return next((k for k, f in episode.features().items() if f.kind == "image"), None)


def shrink(frames: np.ndarray) -> np.ndarray:
    """Shrinks frames (T, H, W, C) to at most `SIDE` pixels high and wide."""
    high, wide = frames.shape[1:3]
    scale = SIDE / max(high, wide)
    return frames if scale >= 1 else resize(frames, (max(round(high * scale), 1), max(round(wide * scale), 1)))


def _to_rgb(frame: np.ndarray) -> np.ndarray:
    """Converts a gray, color or deeper image to (H, W, 3)."""
    return np.repeat(frame, 3, -1) if frame.shape[-1] == 1 else frame[..., :3]

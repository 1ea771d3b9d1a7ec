"""A chosen episode as something to look at."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import torch
from av import VideoStream

from ..core import UserError, keys
from ..data.episode import Episode
from ..data.video import resize
from ..envs.base import Env, PlanarMap, Renderable, Restorable
from ..files import write_text
from . import plots

VIDEO_FORMATS = {".mp4": ("libx264", "yuv420p"), ".gif": ("gif", "rgb8")}


def write_video(episode: Episode, path: Path | str, env: Env | None = None, *, fps: float | None = None) -> Path:
    """Write an episode as .mp4 or .gif, or its path over the environment's map as .svg.

    Args:
        episode: The episode. Its first camera is shown.
        path: The file. Its suffix chooses the format.
        env: Environment that is put into every recorded step and drawn, if the episode has no camera. Its map is needed
            for .svg.
        fps: Frames per second. None for the environment's rate, or 10.
    """
    path = Path(path)
    if path.suffix == ".svg":
        if not isinstance(env, PlanarMap):
            raise UserError("an .svg needs an environment with a map to draw on", where=path,
                            hint="write .mp4 or .gif")
        write_text(path, plots.trajectories([episode], env.map()).standalone_svg())
        return path
    if path.suffix not in VIDEO_FORMATS:
        raise UserError(
            f"expected {', '.join((*VIDEO_FORMATS, '.svg'))}, found {path.suffix or 'no ending'}",
            where=path,
            hint=f"such as {path.with_suffix('.mp4').name}",
        )
    rate = fps or (env.metadata.get("fps") if env is not None else None) or 10
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write(part, path.suffix, _frames(episode, env, path), Fraction(rate).limit_denominator(1000))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


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


def _frames(episode, env, where) -> Iterator[np.ndarray]:
    """(H, W, 3) uint8 each."""
    if camera := _camera(episode):
        yield from np.asarray(episode.steps[camera])
        return
    if not (isinstance(env, Renderable) and isinstance(env, Restorable)):
        raise UserError("expected a column of images, or an environment that can be put into recorded steps and "
                        "looked at, found neither", where=where,
                        hint="record with a camera, or write .svg for a toy in the plane")
    steps = {k: np.asarray(v) for k, v in episode.steps.items() if not k.startswith("next.") and k != "action"
             and np.asarray(v).dtype.kind in "fiub"}
    env.reset(torch.arange(env.rows), keys(0, range(env.rows)))
    for t in range(min(len(v) for v in steps.values())):
        state = {k: torch.from_numpy(np.array(v[t:t + 1])) for k, v in steps.items()}
        env.restore(torch.zeros(1, dtype=torch.int64), state)
        yield env.frame(0)


def _write(path, suffix, frames, rate) -> None:
    codec, pixels = VIDEO_FORMATS[suffix]
    with av.open(str(path), "w", format=suffix[1:]) as out:
        stream: VideoStream | None = None
        for frame in frames:
            frame = _to_rgb(frame)
            if stream is None:
                stream = cast(VideoStream, out.add_stream(codec, rate=rate))
                # Most players want even sizes; the last line and column are doubled, not cut.
                stream.height, stream.width = (n + n % 2 for n in frame.shape[:2])
                stream.pix_fmt = pixels
            even = np.pad(frame, ((0, stream.height - frame.shape[0]), (0, stream.width - frame.shape[1]), (0, 0)),
                          mode="edge")
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")))
        if stream is None:
            raise UserError("the video has no frames", where=path, hint="take an episode with steps")
        out.mux(stream.encode(None))

"""Check for cameras that deliver fewer frames than the data have rows, so that frames are repeated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ..data.episode import Dataset, Episode, concat_columns
from ..hints import pluralize
from .base import Finding, Location
from .motion import columns_of_kind

_FEWEST = 6  # repeated frames of an episode
_SHARE = 0.2  # least share of an episode's rows that they cover
_STEADY = 0.9  # least share of them that are repeated equally often, to one row
_ROUNDING = 0.6  # largest deviation of the number of rows of a frame, which is rounded


def find_repeated_frames(data: Dataset, name: str, equal: Mapping[int, np.ndarray]) -> Iterator[Finding]:
    """Finds a camera whose frames are repeated at a steady rate while the state moves.

    A small image also stands still for some rows if the motion is slow. But then a new frame comes after equal
    distances, and not, as with a slow camera, after equal times.

    Args:
        equal: For each episode, whether each frame equals the one before it, (T,).
    """
    states = columns_of_kind(data[0].features(), "observation")
    periods = {e: period for e, same in equal.items() if states and (period := _period(data[e], states, same))}
    if periods:
        period, rate = float(np.median(list(periods.values()))), ""
        if data.fps:
            rate = f", which is {data.fps / period:.3g} per second at {data.fps:g} rows per second"
        yield Finding(
            "repeated-frames", "warning", f"{name}: a new frame comes only every {period:.3g} rows in "
            f"{pluralize(len(periods), 'episode')} of {len(equal)}{rate}; the rows between repeat the frame before",
            "look at the exposure time of the camera and at what else uses its port, and record again; a view with "
            "this rate (view make --fps) has no repeated frames",
            Location(None, min(periods), None, name), tuple(periods))


def _period(episode: Episode, states: list[str], equal: np.ndarray) -> float | None:
    """The usual number of rows from one new frame to the next, where the frames between are repeated. None if the
    frames are not repeated, or not at a steady rate."""
    new = np.flatnonzero(~equal)
    gaps = np.diff(new)
    slow = np.flatnonzero(gaps >= 2)
    if len(slow) < _FEWEST or gaps[slow].sum() < _SHARE * len(equal):
        return None
    while_slow = slice(slow[0], slow[-1] + 1)
    times, new = gaps[while_slow], new[slow[0]:slow[-1] + 2]
    if np.mean(np.abs(times - np.median(times)) <= 1) < _STEADY or times.std() > _ROUNDING:
        return None
    s = concat_columns(episode, states)[:len(equal)].astype(np.float64)
    spread = np.std(s, axis=0)
    moved = np.linalg.norm(np.diff((s / np.where(spread > 0, spread, np.inf))[new], axis=0), axis=1)
    if not np.isfinite(moved).all() or not moved.mean() > 1e-3:
        return None
    if moved.std() / moved.mean() < 1.5 * times.std() / times.mean() + 0.05:  # equal distances
        return None
    return float(times.mean())

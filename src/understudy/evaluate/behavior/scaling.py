"""Scales states and actions of episodes to units that do not depend on the robot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...core import Feature
from ...data.episode import Dataset, Episode, concat_columns

MAX_EPISODES = 200  # episodes of a data set that are looked at, evenly over it


@dataclass(frozen=True)
class TrajectoryScaling:
    """Units of states and actions: standard deviations over a data set. Constant components are ignored.

    Args:
        columns: Observations that are numbers. The state is their components side by side, (S,).
        names: Names of the components of the state, (S,).
        center: Mean of each component, (S,).
        scale: Standard deviation of each component, (S,). Infinite where it is constant.
        action_scale: Standard deviation of each component of the actions, (A,). Infinite where it is constant. None if
            actions are choices, which have no distance.
    """

    columns: tuple[str, ...]
    names: tuple[str, ...]
    center: np.ndarray
    scale: np.ndarray
    action_scale: np.ndarray | None

    @staticmethod
    def from_data(data: Dataset, *others: Dataset) -> TrajectoryScaling:
        """Computes the scales from `data`, for the columns that all data sets have in the same shape."""
        features = data.features()
        shared = [d.features() for d in others]
        columns = tuple(k for k, f in sorted(features.items()) if k.startswith("observation.") and _is_numeric(f)
                        and all(k in g and _is_numeric(g[k]) and g[k].shape == f.shape for g in shared))
        names = tuple(f"{k.removeprefix('observation.')}.{name}"
                      for k in columns for name in features[k].names or range(features[k].size))
        some = evenly_spaced(data)
        states = _stack_finite([concat_columns(e, columns) for e in some], len(names))
        action_scale = None
        if all("action" in f and _is_numeric(f["action"]) and f["action"].shape == features["action"].shape
               for f in (features, *shared)):
            actions = [concat_columns(e, ("action",)) for e in some]
            action_scale = component_scale(_stack_finite(actions, features["action"].size))
        center = states.mean(0) if len(states) else np.zeros(len(names))
        return TrajectoryScaling(columns, names, center, component_scale(states), action_scale)

    def states(self, episode: Episode) -> np.ndarray:
        """Returns the scaled states about their mean, (T or T + 1, S), including the final observation."""
        return (concat_columns(episode, self.columns) - self.center) / self.scale

    def actions(self, episode: Episode) -> np.ndarray | None:
        """Returns the scaled actions, which are not shifted, (T, A)."""
        if self.action_scale is None:
            return None
        return concat_columns(episode, ("action",))[:len(episode)] / self.action_scale

    @property
    def n_components(self) -> int:
        """Number of components of the state that vary."""
        return int(np.isfinite(self.scale).sum())


def evenly_spaced(data: Dataset, max_episodes: int = MAX_EPISODES) -> list[Episode]:
    """Returns a limited number of episodes, evenly spaced, the first and the last included."""
    return [data[int(i)] for i in evenly_spaced_indices(len(data), max_episodes)]


def evenly_spaced_indices(n: int, max_count: int) -> np.ndarray:
    """Returns at most `max_count` of the numbers from 0 to n - 1, evenly spaced, including both ends."""
    return np.unique(np.linspace(0, n - 1, min(n, max_count)).round().astype(int)) if n else np.zeros(0, int)


def resample_rows(rows: np.ndarray, points: int) -> np.ndarray:
    """Resamples rows evenly in time, by linear interpolation.

    Args:
        rows: (T, D).
        points: Number of new rows. The first and the last row stay.

    Returns:
        (points, D).
    """
    position = np.linspace(0, len(rows) - 1, points)
    low = np.minimum(position.astype(int), len(rows) - 1)
    high = np.minimum(low + 1, len(rows) - 1)
    return rows[low] + (position - low)[:, None] * (rows[high] - rows[low])


def _is_numeric(f: Feature) -> bool:
    return f.kind == "vector" and f.size > 0


def _stack_finite(parts: list[np.ndarray], width: int) -> np.ndarray:
    rows = np.concatenate([np.zeros((0, width)), *parts])
    return rows[np.isfinite(rows).all(1)]


def component_scale(rows: np.ndarray) -> np.ndarray:
    """Returns standard deviations, infinite for components that vary by rounding only."""
    if not len(rows):
        return np.full(rows.shape[1], np.inf)
    spread = rows.std(0)
    return np.where(spread <= 1e-6 * np.maximum(np.abs(rows).max(0), 1e-12), np.inf, spread)

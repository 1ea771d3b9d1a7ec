"""How near failures came to success, and how near successes came to obstacles: distances on the map of a PlanarMap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...data.episode import Episode
from ...envs.base import Env, PlanarMap


def success_margin(episode: Episode, env: Env | None) -> float | None:
    """Returns the distance of an episode from success at its closest point. It is 0 if the episode succeeded.

    Args:
        episode: The episode. Its metadata `margin` is used if the environment reports it.
        env: Otherwise, a `PlanarMap` with one goal. The distance of the agent from the edge of the goal is measured, in
            units of the map.

    Returns:
        The distance. None if it is not known: with several goals, their order is unknown.
    """
    if isinstance(margin := episode.metadata.get("margin"), (int, float)):
        return float(margin)
    plane = env.map() if isinstance(env, PlanarMap) else {"shapes": ()}
    goals = sum(shape["role"] == "goal" for shape in (*plane["shapes"], *plane.get("marks", ())))
    return _closest_distance(episode, env, "goal") if goals == 1 else None


def obstacle_clearance(episode: Episode, env: Env | None) -> float | None:
    """Returns the smallest distance of an episode from the edge of an obstacle.

    Returns:
        The distance in units of the map. None if there is no obstacle.
    """
    return _closest_distance(episode, env, "obstacle")


def distance_unit(env: Env | None) -> str:
    """Returns the unit of distances on the environment's map, if it states one."""
    feature = env.features.get(env.map()["path"][0]) if isinstance(env, PlanarMap) else None
    return feature.unit or "" if feature is not None else ""


def _closest_distance(episode: Episode, env: Env | None, role: str) -> float | None:
    if not isinstance(env, PlanarMap):
        return None
    plane, gaps = env.map(), []
    if plane["path"][0] not in episode.steps:
        return None
    way = planar_points(episode, plane["path"])
    for shape in (*plane["shapes"], *plane.get("marks", ())):
        if shape["role"] == role and shape["kind"] == "circle":
            gaps.append(np.nanmin(np.linalg.norm(way - _shape_position(shape, episode), axis=1)) - shape["radius"])
    return max(float(min(gaps)), 0.0) if gaps else None


def _shape_position(shape: Mapping[str, Any], episode: Episode) -> np.ndarray:
    """Returns the position of a shape, (2,), or (T, 2) if it may move."""
    return np.asarray(shape["at"], float) if "at" in shape else planar_points(episode, shape["column"])


def planar_points(episode: Episode, column: Sequence[Any]) -> np.ndarray:
    """Returns the positions on a map that a column of an episode has, (T or T + 1, 2)."""
    name, *at = column
    values = np.asarray(episode.steps[name], float)
    return values.reshape(len(values), -1)[:, at]

"""How near failures came, and how near successes passed by what they must not touch: distances on a Plane's map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...data.episode import Episode
from ...envs.base import Env, PlanarMap


def success_margin(episode: Episode, env: Env | None) -> float | None:
    """How far the episode stayed from success at its closest, 0 where it got there: what the environment says in
    `info["margin"]` at its end, else how far the place that a Plane draws stayed from the edge of its goal, if it has
    one goal, in units of the map. None where neither is known: of several goals, some are to be reached in turn, and
    some are wrong."""
    if isinstance(told := episode.metadata.get("margin"), (int, float)):
        return float(told)
    plane = env.map() if isinstance(env, PlanarMap) else {"shapes": ()}
    goals = sum(shape["role"] == "goal" for shape in (*plane["shapes"], *plane.get("marks", ())))
    return _closest_distance(episode, env, "goal") if goals == 1 else None


def obstacle_clearance(episode: Episode, env: Env | None) -> float | None:
    """How near the episode passed by an obstacle's edge, in units of the map of a Plane; None where there is none."""
    return _closest_distance(episode, env, "obstacle")


def distance_unit(env: Env | None) -> str:
    """Of these distances, where the environment says."""
    feature = env.features.get(env.map()["path"][0]) if isinstance(env, PlanarMap) else None
    return feature.unit or "" if feature is not None else ""


def _closest_distance(episode: Episode, env: Env | None, role: str) -> float | None:
    if not isinstance(env, PlanarMap):
        return None
    plane, gaps = env.map(), []
    name, *at = plane["path"]
    if name not in episode.steps:
        return None
    way = _state_components(episode, name, at)
    for shape in (*plane["shapes"], *plane.get("marks", ())):
        if shape["role"] == role and shape["kind"] == "circle":
            gaps.append(np.nanmin(np.linalg.norm(way - _shape_position(shape, episode), axis=1)) - shape["radius"])
    return max(float(min(gaps)), 0.0) if gaps else None


def _shape_position(shape: Mapping[str, Any], episode: Episode) -> np.ndarray:
    """(2,), or (T, 2) where it differs by episode and may move."""
    if "at" in shape:
        return np.asarray(shape["at"], float)
    name, *at = shape["column"]
    return _state_components(episode, name, at)


def _state_components(episode: Episode, name: str, at: list[int]) -> np.ndarray:
    column = np.asarray(episode.steps[name], float)
    return column.reshape(len(column), -1)[:, at]

"""Identifies the version of a simulator: its packages, and a digest of its physics parameters."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import gymnasium
import numpy as np

from .base import Env

UNWRAP_ATTRIBUTES = ("env", "point_env", "ant_env", "robot_env")  # in which a wrapper keeps what it wraps
OPTIONS = ("timestep", "gravity", "wind", "density", "viscosity", "integrator", "cone", "solver", "iterations",
           "tolerance", "impratio", "disableflags", "enableflags")
MODEL_FIELDS = ("body_mass", "body_inertia", "geom_friction", "dof_damping", "dof_armature", "dof_frictionloss",
                "jnt_stiffness", "actuator_gear", "actuator_gainprm", "actuator_biasprm", "actuator_ctrlrange")


def simulator_version(env: Env) -> str | None:
    """Returns the version of a simulator as text, such as "ogbench 1.2.2, mujoco 3.3.0 (0.02 s a small step, ...)".

    If two versions are equal, the same actions have the same effect, as far as versions and physics decide it.

    Returns:
        The text. None for environments without a version. If the physics is drawn again in each episode, it describes
        the first one.
    """
    version = env.metadata.get("version")
    if version is None or not hasattr(env, "vec"):
        return None if version is None else f"{str(env.metadata['env']).partition(':')[0]} of version {version}"
    single = getattr(env.vec, "envs", [None])[0]
    if (model := mujoco_model(single)) is not None:
        parameters = {k: np.asarray(getattr(model.opt, k)).tolist() for k in OPTIONS}
        parameters |= {k: np.asarray(getattr(model, k)).reshape(-1).tolist() for k in MODEL_FIELDS}
        parameters["skip"] = int(getattr(getattr(single, "unwrapped", single), "frame_skip", 0) or 0)
        return (f"{version}, mujoco {metadata.version('mujoco')} ({model.opt.timestep:g} s a small step, physics "
                f"{digest(parameters)})")
    inner = getattr(single, "unwrapped", None)
    if isinstance(config := getattr(inner, "config", None), Mapping):
        return f"{version} (config {digest(config)})"
    if version.startswith("gym_pusht"):
        return f"{version}, pymunk {metadata.version('pymunk')}"
    return version


def digest(parameters: Mapping[str, Any]) -> str:
    """Eight hex digits that identify a document of numbers. Numbers are rounded to six digits, because compilers differ
    in the last ones."""
    def plain(value):
        if isinstance(value, Mapping):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return f"{value:.6g}" if isinstance(value, float) else value
    text = json.dumps(plain(parameters), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def mujoco_model(single: gymnasium.Env | None):
    """Returns MuJoCo's model of an environment. None for environments of other simulators."""
    if "mujoco" not in sys.modules or single is None:
        return None
    import mujoco

    place, depth = getattr(single, "unwrapped", single), 0
    while place is not None and depth < 4:
        if isinstance(model := getattr(place, "model", None), mujoco.MjModel):
            return model
        place = next((getattr(place, k) for k in UNWRAP_ATTRIBUTES if getattr(place, k, None) is not None), None)
        place, depth = getattr(place, "unwrapped", place), depth + 1
    return None

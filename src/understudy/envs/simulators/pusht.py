"""Adapter to PushT (Florence et al. 2021; Chi et al. 2023): a disc pushes a T onto its mark, in Pymunk."""

from __future__ import annotations

import gym_pusht  # noqa: F401  (names the environment)
import gymnasium

from ...core import UserError
from .. import gymnasium_adapter
from ..gymnasium_adapter import RenderableGymVector


def make(name: str, rows: int = 1, limit: int = 300, **options) -> RenderableGymVector:
    """Makes a PushT environment.

    The reward of a step is the fraction of the mark that is covered, and 1 from 95 % on. The largest reward of an
    episode is the score that Chi et al. (2023) report.

    Args:
        **options: Arguments of `gymnasium.make`. ``obs_type="pixels_agent_pos"`` shows a camera.
    """
    if name not in gymnasium.registry:
        raise UserError(f"gym-pusht has no environment {name!r}", where=name,
                        hint="did you mean gym_pusht/PushT-v0?")
    vec = gymnasium_adapter.vectorize(lambda: gymnasium_adapter.build(name, max_episode_steps=limit, **options), rows)
    return RenderableGymVector(vec, {**gymnasium_adapter.env_metadata(vec.envs[0], name),
                      "success": "the T covers more than 95 % of its mark (info['is_success']) at any step"})

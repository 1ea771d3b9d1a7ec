"""Wrapper whose actions are waypoints, to which the robot moves on a straight line."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from ..core import Above, AtLeast, UserError, part
from .wrappers import ActionWrapper


@part
class WaypointWrapper(ActionWrapper):
    """Wrapper in which an action is a position to which the robot moves on a straight line, for `period` steps.

    The environment executes velocities, and clips them.

    Args:
        components: Components of `column` that are the position of the body, one for each component of the action.
        gain: Velocity per distance from the place, 1/s.
        period: Number of environment steps per place.
    """

    components: tuple[int, ...] = (0, 1)
    gain: Annotated[float, Above(0)] = 10.0
    period: Annotated[int, AtLeast(1)] = 20
    column: str = "observation.state"

    def features(self, features):
        size = features["action"].shape[0]
        if len(self.components) != size:
            raise UserError(f"{len(self.components)} components are the position, but the action has {size}",
                            where="WaypointWrapper.components", hint="name one for each component of the action")
        return {**features, "action": replace(features["action"], unit=None)}

    def transform_action(self, obs, action, state):
        return self.gain * (action - obs[self.column][:, list(self.components)]), state

"""Four rooms with one goal that policies do not observe, and walls not to touch."""

from __future__ import annotations

import numpy as np

from understudy.envs.toys.four_rooms import FourRooms

GOAL = (2.5, 6.5)  # m: in the second room of the first column


class OneGoalRooms(FourRooms):
    """`FourRooms` whose goal is always the same. Touching a wall ends an episode, so that errors are not forgiven.

    Args:
        first_room: Episodes begin in the room at the origin. False: anywhere.
    """

    def __init__(self, rows: int, first_room: bool = False):
        self.first_room = first_room
        super().__init__(rows, walls="end")

    def initial_state(self, key):
        drawn = super().initial_state(key)
        goal = np.broadcast_to(np.array(GOAL, np.float32), drawn["goal"].shape).copy()
        at = (0.5 + 3 * drawn["at"] / 8).astype(np.float32) if self.first_room else drawn["at"]
        return {"at": at, "goal": goal}

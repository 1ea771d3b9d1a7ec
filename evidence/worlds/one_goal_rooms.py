"""Four rooms with one goal that policies do not observe, and walls not to touch: for claims about small data."""

from __future__ import annotations

import numpy as np

from understudy.data.episode import Dataset
from understudy.envs.toys.four_rooms import FourRooms
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.base import Executor
from understudy.execute.planners import FixedBatch
from understudy.policy import Policy

ROWS = 25  # environments side by side; results do not depend on it
GOAL = (2.5, 6.5)  # m: in the second room of the first column
STATE = "observation.state"


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


def one_goal_demonstrations(episodes: int, seed: int, first_room: bool = False, split: int = 0) -> Dataset:
    """Episodes of the expert. Nearly all succeed.

    Args:
        first_room: See `OneGoalRooms`.
        split: Different numbers give independent draws with the same seed.
    """
    env = OneGoalRooms(min(ROWS, episodes), first_room)
    return rollout(env.expert(), env, episodes, recording_seed(seed), first=100_000 * split)


def one_goal_rollouts(policy: Policy, executor: Executor, episodes: int, starts: int, first_room: bool = False
                      ) -> Dataset:
    """Rolls out a policy.

    Args:
        executor: Executes its plans.
        first_room: See `OneGoalRooms`.
    """
    env = OneGoalRooms(min(ROWS, episodes), first_room)
    return rollout(PolicyActor(FixedBatch(policy, ROWS), executor), env, episodes, seed=starts)

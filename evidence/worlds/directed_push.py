"""Similar tasks for claims: push, with goals only in some directions from the block."""

from __future__ import annotations

import math

import numpy as np
import torch

from evidence.worlds.curation import first_successes
from understudy.core import keys
from understudy.data.episode import Dataset, Episode
from understudy.envs.toys.push import Push
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor, PolicyActor
from understudy.execute.planners import FixedBatch
from understudy.learn.method import Method
from understudy.policy import Policy

ROWS, N_DIRECTIONS = 100, 8  # environments side by side; results do not depend on it


class DirectedPush(Push):
    """Push, with the goal in given directions as seen from the initial position of the block.

    Args:
        directions: Allowed sectors of 45 degrees, 0 to 7, counterclockwise from the x axis.
        limit: Largest number of steps of an episode.
    """

    def __init__(self, rows: int, directions: tuple[int, ...], limit: int = 100):
        self.directions = directions
        super().__init__(rows, limit)

    def initial_state(self, key):
        drawn = super().initial_state(key)
        for n in range(1, 1000):
            ahead = drawn["goal"] - drawn["block"]
            sector = np.floor(np.arctan2(ahead[:, 1], ahead[:, 0]) % (2 * math.pi) / (2 * math.pi / N_DIRECTIONS))
            (others,) = (~np.isin(sector, self.directions)).nonzero()
            if not len(others):
                break
            again = super().initial_state(torch.cat([keys(k, [n]) for k in key[others].tolist()]))
            for name, value in again.items():
                drawn[name][others] = value
        return drawn


def direction_demonstrations(actor: Actor, directions: tuple[int, ...], episodes: int, seed: int, split: int = 0,
                             limit: int = 100) -> list[Episode]:
    """Successful rollouts of an actor in `DirectedPush`.

    Args:
        directions: Allowed directions of the goal.
        split: Different numbers give independent draws with the same seed.
        limit: Largest number of steps of an episode.

    Returns:
        The first `episodes` rollouts that succeed.
    """
    return list(first_successes(actor, DirectedPush(min(ROWS, episodes), directions, limit), episodes, seed, split))


def rollout_policy(policy: Policy, method: Method, directions: tuple[int, ...], episodes: int, starts: int) -> Dataset:
    """Rolls out a policy in `DirectedPush`.

    Args:
        method: The method, whose executor acts.
        directions: Allowed directions of the goal.
    """
    rows = min(ROWS, episodes)
    return rollout(
        PolicyActor(FixedBatch(policy, rows), method.executor), DirectedPush(rows, directions), episodes, seed=starts
    )

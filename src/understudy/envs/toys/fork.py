"""A toy with two equally good ways, left and right around a pillar. Their mean hits the pillar."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ...core import normal
from ...execute.actor import Actor
from ..toy import MapToy, distance, length, named_vector

PILLAR, PILLAR_RADIUS = (0.6, 0.0), 0.25
GOAL, GOAL_RADIUS = (1.2, 0.0), 0.1
SPREAD = 0.03  # standard deviation of the start about the origin, m


class Fork(MapToy):
    """Toy in which a point is moved by its velocity from near the origin to a goal behind a pillar.

    observation.state (2): position, m. action (2): velocity, m/s, clipped to [-1, 1]. A step is 0.1 s. Reaching the
    goal ends an episode with reward 1, touching the pillar with -1.

    Best possible success: 1.0 without gusts. `ForkExpert(noise=0)` attains it.

    Args:
        gust: Standard deviation of a random velocity that is added at every step, m/s.
        spread: Standard deviation of the start in each coordinate, m.
    """

    def __init__(self, rows: int = 1, limit: int = 40, gust: float = 0.0, spread: float = SPREAD):
        self.gust, self.spread = gust, spread
        self.features = {
            "observation.state": named_vector("x", "y", unit="m"),
            "action": named_vector("x", "y", unit="m/s"),
        }
        self.metadata = {"env": "fork", "version": 1, "fps": 10, "limit": limit, "optimum": 1.0,
                         "success": f"within {GOAL_RADIUS} m of the goal without having touched the pillar"}
        super().__init__(rows, limit)

    def initial_state(self, key):
        return {"at": self.spread * normal(key, torch.zeros_like(key), (2,)).numpy()}

    def observe(self):
        return {"observation.state": self.state["at"]}

    def state_from_columns(self, steps):
        return {"at": steps["observation.state"]}

    def advance(self, action):
        if self.gust:
            action = action + self.gust * normal(self.key, self.clock, (2,)).numpy()
        self.state["at"] = at = self.state["at"] + 0.1 * action
        failure = distance(at, PILLAR) < PILLAR_RADIUS
        success = (distance(at, GOAL) < GOAL_RADIUS) & ~failure
        return success.astype(np.float32) - failure, success, failure

    def expert(self):
        return ForkExpert()

    def map(self):
        return {"x": (-0.2, 1.4), "y": (-0.8, 0.8), "path": ("observation.state", 0, 1),
                "control": {"column": "observation.state", "components": (0, 1), "step": 0.1}, "shapes": [
            {"kind": "circle", "at": PILLAR, "radius": PILLAR_RADIUS, "role": "obstacle"},
            {"kind": "circle", "at": GOAL, "radius": GOAL_RADIUS, "role": "goal"},
            {"kind": "circle", "at": (0.0, 0.0), "radius": 2 * self.spread, "role": "start"}]}

    def state_shapes(self, row):
        at = self.state["at"][row]
        return [{"kind": "circle", "at": tuple(at), "radius": 0.03, "role": "agent"}]


@dataclass(frozen=True)
class ForkExpert(Actor):
    """Expert of `Fork`: passes the pillar on one side and goes to the goal.

    Args:
        side: +1 for left, -1 for right. 0 draws the side with the key of the episode.
        noise: Standard deviation of Gaussian noise on the action, m/s.
    """

    side: int = 0
    noise: float = 0.1

    def start(self, obs, key):
        way = torch.where(normal(key, torch.zeros_like(key), (1,), stream=6)[:, 0] > 0, 1.0, -1.0)
        return {"way": torch.full_like(way, self.side) if self.side else way, "key": key,
                "count": torch.zeros_like(key)}

    def act(self, obs, state):
        position = obs["observation.state"]
        around = torch.stack([torch.full_like(state["way"], PILLAR[0]), 0.45 * state["way"]], 1)
        aim = torch.where(position[:, :1] < PILLAR[0] - 0.05, around, torch.tensor(GOAL)) - position
        action = aim / length(aim).clamp(min=0.1) + self.noise * normal(state["key"], state["count"], (2,), stream=2)
        return action, {**state, "count": state["count"] + 1}

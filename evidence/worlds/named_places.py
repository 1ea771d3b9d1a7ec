"""A point and eight places on a circle, which words name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from understudy.core import Feature, normal, uniform
from understudy.envs.toy import Toy, distance, named_vector
from understudy.execute.actor import Actor

ROWS, N_PLACES = 100, 8  # environments side by side; places on a circle
STATE, TASK, TARGET, RATE_COLUMN = "observation.state", "observation.task", "observation.goal", "sampling_rate"
ANGLES = 2 * np.pi * np.arange(N_PLACES) / N_PLACES
PLACES, RADIUS = 0.8 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1).astype(np.float32), 0.12  # m


class NamedPlaces(Toy):
    """A point goes from anywhere to the one of eight places on a circle that a word names.

    observation.state (2): position, m, from -1 to 1. observation.task (1): the word, a class. observation.task? (1):
    whether it is given. observation.goal (2): position of the place, if `by_goal`. simulator.state (1): number of the
    place. action (2): velocity, m/s, clipped to [-1, 1]. A step is 0.1 s. Reaching the place ends the episode with
    success.

    Best possible success: 1.0. `NamedPlacesExpert(noise=0)` attains it.

    Args:
        limit: Number of steps of an episode.
        by_goal: The place is given by its position and not by its word.
    """

    state_columns = (STATE, "simulator.state")

    def __init__(self, rows: int = 1, limit: int = 30, by_goal: bool = False):
        self.by_goal = by_goal
        at = named_vector("x", "y", unit="m")
        self.features = {STATE: at, TASK: Feature("int64", (1,), "discrete", num_classes=(N_PLACES,)),
                         TASK + "?": Feature("bool", ()), "simulator.state": named_vector("place"),
                         "action": named_vector("x", "y", unit="m/s")}
        if by_goal:
            self.features[TARGET] = at
        self.metadata = {"env": "named_places", "version": 1, "fps": 10, "limit": limit, "optimum": 1.0,
                         "success": f"within {RADIUS} m of the place that is named"}
        super().__init__(rows, limit)

    def initial_state(self, key):
        drawn = uniform(key, torch.zeros_like(key), (3,)).numpy()
        return {"at": (2 * drawn[:, :2] - 1).astype(np.float32), "place": (N_PLACES * drawn[:, 2]).astype(np.int64)}

    def observe(self):
        place = self.state["place"]
        goal = {TARGET: PLACES[place]} if self.by_goal else {}
        return {STATE: self.state["at"], TASK: place[:, None], TASK + "?": np.full(self.rows, not self.by_goal),
                "simulator.state": place[:, None].astype(np.float32), **goal}

    def state_from_columns(self, steps):
        return {"at": steps[STATE], "place": np.rint(steps["simulator.state"][:, 0]).astype(np.int64)}

    def advance(self, action):
        s = self.state
        s["at"] = np.clip(s["at"] + np.float32(0.1) * action, -1, 1)
        success = distance(s["at"], PLACES[s["place"]]) < RADIUS
        return success, success, np.zeros_like(success)

    def expert(self):
        return NamedPlacesExpert()

    def map(self):
        places = [{"kind": "circle", "at": tuple(map(float, at)), "radius": RADIUS, "role": "goal"} for at in PLACES]
        return {"x": (-1.0, 1.0), "y": (-1.0, 1.0), "path": (STATE, 0, 1), "shapes": places}

    def frame(self, row):
        from understudy.envs.raster import render_map

        at = self.state["at"][row]
        return render_map(self.map(), [{"kind": "circle", "at": tuple(at), "radius": 0.03, "role": "agent"}])


@dataclass(frozen=True)
class NamedPlacesExpert(Actor):
    """Goes to the named place in a curve, to the left or to the right.

    Args:
        noise: Standard deviation of Gaussian noise on the action, m/s.
    """

    noise: float = 0.2

    def start(self, obs, key):
        side = torch.where(normal(key, torch.zeros_like(key), (1,), stream=6)[:, 0] > 0, 1.0, -1.0)
        return {"side": side, "key": key, "count": torch.zeros_like(key)}

    def act(self, obs, state):
        ahead = torch.from_numpy(PLACES)[obs[TASK][:, 0]] - obs[STATE]
        gap = ahead.norm(dim=1, keepdim=True)
        turn = 0.8 * state["side"] * gap[:, 0].clamp(max=1)
        across = torch.stack([-ahead[:, 1], ahead[:, 0]], 1)
        heading = turn.cos()[:, None] * ahead + turn.sin()[:, None] * across
        action = heading / gap.clamp(min=0.1) + self.noise * normal(state["key"], state["count"], (2,), stream=2)
        return action.float(), {**state, "count": state["count"] + 1}

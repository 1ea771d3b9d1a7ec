"""A toy with causal confusion: a car at a crossing, whose dashboard shows a light when it brakes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from ...core import normal, uniform
from ...execute.actor import CountingActor
from ..raster import COLOR_OF_ROLE, Drawable
from ..toy import Toy, named_vector

CRUISE = 10.0  # m/s
FORCE = 5.0  # m/s^2, at full throttle or brake
PERIOD = 0.2  # s
PIXELS, PERSON = 16, 2.0  # of the camera's line; how bright a person is, where all else is within -1 and 1
HIDDEN = ("distance", "speed", "person", "appears_at", "wait", "pixel", "number", "clock")
DECISIVE = 5  # this many of HIDDEN, from the first, decide what happens; the rest only decide the picture


class Drive(Toy, Drawable):
    """Toy in which a car drives to a crossing that a person may block. Its brake light causes causal confusion.

    The car must not pass while the person is on the road, and must pass afterwards. The camera shows the person as one
    bright pixel among clutter. The dashboard has a light that shows whether the brake was on in the last step.

    The expert brakes for many steps in a row, so that the light predicts nearly all of the braking. Only the few steps
    at which braking begins or ends show its cause. A policy that learns from the light instead of the person repeats
    its last action.

    observation.state (17; 16 without dashboard; 5 more if fully observed): the pixels, whether the brake was on (0 or
    1), and the first 5 components of simulator.state. simulator.state (8): distance to the crossing, m; speed, m/s;
    whether a person is on the road; the distance at which the person appears (below 0: never); for how many more steps
    the person stays; the pixel; and the number and step that decide the clutter.

    action (1): throttle, or brake below 0, clipped to [-1, 1]. It is 5 m/s^2 at 1. The speed is from 0 to 10 m/s. A
    step is 0.2 s. Passing the crossing ends the episode, with reward 1 if it is free and -1 if it is not.

    Best possible success: 1.0. `DriveExpert(noise=0)` attains it, from the present pixels alone.

    Args:
        dashboard: Observe the brake light.
        fully_observed: Also observe what decides the rewards (distance, speed, person, where it appears and how long it
            waits), since value and reward learning need a Markov observation.
        starts: "free": an episode begins at any distance and speed, with or without a person on the road, and with the
            light on or off, all drawn independently. Demonstrations from such starts show which of them the expert
            reacts to: see `audit.scores.action_dependence`.

    References:
        de Haan et al. (2019), Causal Confusion in Imitation Learning, arXiv:1905.11979.
        Pfrommer et al. (2023), Initial State Interventions for Deconfounded Imitation Learning, arXiv:2307.15980.
    """

    state_columns = ("observation.state", "simulator.state")

    def __init__(self, rows: int = 1, limit: int = 90, dashboard: bool = True, fully_observed: bool = False,
                 starts: Literal["natural", "free"] = "natural"):
        self.dashboard, self.fully_observed, self.starts = dashboard, fully_observed, starts
        names = (*(f"pixel.{i}" for i in range(PIXELS)), *(("brake",) if dashboard else ()),
                 *(HIDDEN[:DECISIVE] if fully_observed else ()))
        self.features = {"observation.state": named_vector(*names), "simulator.state": named_vector(*HIDDEN),
                         "action": named_vector("throttle")}
        self.metadata = {"env": "drive", "version": 1, "fps": 5, "limit": limit, "optimum": 1.0,
                         "success": "past the crossing while nobody was on it"}
        super().__init__(rows, limit)

    def initial_state(self, key):
        drawn = uniform(key, torch.zeros_like(key), (7,)).numpy()
        none = np.zeros(len(key))
        hidden = np.stack([50 + 20 * drawn[:, 0], 6 + 4 * drawn[:, 1], none,
                           np.where(drawn[:, 2] < 0.75, 18 + 8 * drawn[:, 3], -1), 10 + np.floor(16 * drawn[:, 4]),
                           np.floor(PIXELS * drawn[:, 5]), np.floor(2**23 * drawn[:, 6]), none], 1).astype(np.float32)
        brake = none.astype(np.float32)
        if self.starts == "free":
            distance, speed, person, brake = uniform(key, torch.ones_like(key), (4,)).numpy().astype(np.float32).T
            hidden[:, :3] = np.stack([10 + 60 * distance, CRUISE * speed, person < 0.5], 1)
            brake = (brake < 0.5).astype(np.float32)
        return {"pixels": _camera(hidden), "brake": brake, "hidden": hidden}

    def observe(self):
        s = self.state
        parts = [s["pixels"], *([s["brake"][:, None]] if self.dashboard else []),
                 *([s["hidden"][:, :DECISIVE]] if self.fully_observed else [])]
        return {"observation.state": np.concatenate(parts, 1), "simulator.state": s["hidden"]}

    def state_from_columns(self, steps):
        observed = steps["observation.state"]
        brake = observed[:, PIXELS] if self.dashboard else np.zeros(len(observed), np.float32)
        return {"pixels": observed[:, :PIXELS], "brake": brake, "hidden": steps["simulator.state"]}

    def advance(self, action):
        s = self.state
        distance_before, speed, person, appears_at, wait, pixel, number, clock = s["hidden"].T
        after = np.clip(speed + np.float32(PERIOD * FORCE) * action[:, 0], 0, np.float32(CRUISE))
        distance_after = distance_before - np.float32(PERIOD / 2) * (speed + after)
        success, failure = (distance_after <= 0) & (person == 0), (distance_after <= 0) & (person > 0)
        wait = np.where(person > 0, wait - 1, wait)
        person = (wait > 0) & ((person > 0) | (distance_after <= appears_at))
        hidden = np.stack([distance_after, after, person, appears_at, wait, pixel, number, clock + 1], 1)
        s["hidden"] = hidden.astype(np.float32)
        s["pixels"], s["brake"] = _camera(s["hidden"]), (action[:, 0] < 0).astype(np.float32)
        return success.astype(np.float32) - failure, success, failure

    def expert(self):
        return DriveExpert()

    def map(self):
        return {"x": (-5.0, 75.0), "y": (-5.0, 75.0), "path": ("simulator.state", 0, 1), "shapes": [
            {"kind": "box", "at": (0.0, 5.0), "half": (0.4, 10.0), "role": "goal"}]}

    @property
    def square(self):
        return (-70.0, -38.0), 76.0

    def draw(self, surface, row):
        distance_ahead, speed, person, *_ = self.state["hidden"][row]
        flat = np.array([[1, 0]], np.float32)
        surface.box(np.array([[-32, 0]], np.float32), flat, (38, 4), COLOR_OF_ROLE["start"])
        surface.box(np.array([[1, 0]], np.float32), flat, (0.8, 4), COLOR_OF_ROLE["goal"])
        if person:
            surface.circle(np.array([[1, 0]], np.float32), 1.5, COLOR_OF_ROLE["agent"])
        surface.box(np.array([[-distance_ahead, 0]], np.float32), flat, (2.4, 1.4), COLOR_OF_ROLE["block"])
        if self.state["brake"][row]:
            surface.box(np.array([[-distance_ahead - 2.2, 0]], np.float32), flat, (0.5, 1.4), COLOR_OF_ROLE["agent"])
        bar = np.array([[-66 + 2 * speed, 14]], np.float32)
        surface.box(bar, flat, (0.3 + 2 * speed, 1.2), COLOR_OF_ROLE["waypoint"])
        for i, value in enumerate(self.state["pixels"][row]):
            grey = round(float(np.clip(230 - 70 * (value + 1), 20, 230)))
            surface.box(np.array([[-66 + 4.2 * i, -20]], np.float32), flat, (1.9, 1.9), (grey, grey, grey))


def _camera(hidden: np.ndarray) -> np.ndarray:
    """Returns camera images, (rows, PIXELS), of random clutter and of the person, if there is one.

    The clutter depends on the numbers of the episode and the step, so that a restored state is followed by the same.
    """
    number, clock = (torch.from_numpy(hidden[:, i].astype(np.int64)) for i in (6, 7))
    pixels = 2 * uniform(number, clock, (PIXELS,)).numpy().astype(np.float32) - 1
    shows = (hidden[:, 2] > 0)[:, None] & (np.arange(PIXELS) == hidden[:, 5, None])
    return np.where(shows, np.float32(PERSON), pixels)


@dataclass(frozen=True)
class DriveExpert(CountingActor):
    """Expert of `Drive`: brakes while it sees a person, and accelerates otherwise.

    Args:
        noise: Standard deviation of Gaussian noise on the action, as a fraction of full throttle.
    """

    noise: float = 0.1

    def act(self, obs, state):
        sees_person = (obs["observation.state"][:, :PIXELS] > 1.5).any(1, keepdim=True)
        action = torch.where(sees_person, -0.8, 0.8) + self.noise * normal(state["key"], state["count"], (1,), stream=2)
        return action, {**state, "count": state["count"] + 1}

"""A toy car on a winding lane with a parked box, where small mistakes add up until it leaves the lane."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ...core import normal, uniform
from ...execute.actor import CountingActor
from ..raster import COLOR_OF_ROLE, Drawable
from ..toy import Toy, named_vector

PERIOD, LENGTH = 0.1, 50.0  # s; m, of the lane
HALF_WIDTH, RADIUS = 1.5, 0.4  # m, of the lane and of the car
BOX_HALF, BOX_OFFSET = (1.5, 0.6), 0.9  # m: the box leaves 60 % of the width
WAVES = ((0.07, 23.0), (0.05, 11.0))  # curvature, 1/m, and wavelength, m
AHEAD = (0.0, 4.0, 8.0)  # m: where the curvature is observed
MAX_SPEED, FORCE, TURN, DAMPING = 8.0, 3.0, 4.0, 2.0  # m/s, m/s^2, rad/s^2, 1/s
N_PAST = 3


class LaneDriving(Toy, Drawable):
    """Toy in which a car drives along a winding lane, 3 m wide, and past a box that is parked in it.

    The curvature of the lane is ahead of the car. Positions are in coordinates of the lane: the progress along its
    center line, and the offset from it, positive to the left. The car is a disc of 0.4 m radius. It has momentum: what
    it steers takes 0.5 s to turn it.

    observation.state (12): offset, m; heading relative to the lane, rad; speed, m/s; yaw rate, rad/s; curvature of the
    lane at 0, 4 and 8 m ahead, 1/m; distance to the middle of the box along the lane, m, and its offset, m; and the
    offsets of the car one, two and three steps ago, m. simulator.state (4): progress and offset, m, and the two phases
    of the lane, rad.

    action (2): steering, to the left above 0, and throttle, or brake below 0, clipped to [-1, 1]. A step is 0.1 s.
    Leaving the lane or touching the box ends an episode with reward -1, and passing the end of the lane with 1.

    Best possible success: 1.0 without gusts. `LaneExpert(noise=0)` attains it.

    Args:
        gust: Standard deviation of a random yaw acceleration at every step, rad/s^2.
        offset: Largest offset of the start, m.
    """

    state_columns = ("observation.state", "simulator.state")

    def __init__(self, rows: int = 1, limit: int = 120, gust: float = 0.0, offset: float = 0.4):
        self.gust, self.offset = gust, offset
        self.features = {
            "observation.state": named_vector(
                "offset", "heading", "speed", "yaw_rate", *(f"curvature.{i}" for i in range(len(AHEAD))),
                "box.ahead", "box.offset", *(f"past_offset.{i}" for i in range(1, N_PAST + 1))),
            "simulator.state": named_vector("progress", "offset", "phase.0", "phase.1"),
            "action": named_vector("steering", "throttle")}
        self.metadata = {"env": "lane_driving", "version": 1, "fps": 10, "limit": limit, "optimum": 1.0,
                         "success": "past the end of the lane, without leaving it or touching the box"}
        super().__init__(rows, limit)

    def initial_state(self, key):
        drawn = uniform(key, torch.zeros_like(key), (7,)).numpy()
        offset, heading, speed = self.offset * (2 * drawn[:, 0] - 1), 0.2 * drawn[:, 1] - 0.1, 3 + 3 * drawn[:, 2]
        box = np.stack([18 + 17 * drawn[:, 3], np.where(drawn[:, 4] < 0.5, BOX_OFFSET, -BOX_OFFSET)], 1)
        return {"car": np.stack([offset, heading, speed, 0 * speed], 1).astype(np.float32),
                "past": np.repeat(offset[:, None], N_PAST, 1).astype(np.float32), "box": box.astype(np.float32),
                "road": np.stack([0 * offset, *(2 * np.pi * drawn[:, 5:]).T], 1).astype(np.float32)}

    def observe(self):
        s = self.state
        curvature = np.stack([_curvature(s["road"], ahead) for ahead in AHEAD], 1)
        return {"observation.state": np.concatenate([s["car"], curvature, s["box"], s["past"]], 1),
                "simulator.state": np.insert(s["road"], 1, s["car"][:, 0], 1)}

    def state_from_columns(self, steps):
        car, _, box, past = np.split(steps["observation.state"], np.cumsum([4, len(AHEAD), 2]), 1)
        return {"car": car, "box": box, "past": past, "road": np.delete(steps["simulator.state"], 1, 1)}

    def advance(self, action):
        s = self.state
        offset, heading, speed, yaw_rate = s["car"].T
        dt, curvature = np.float32(PERIOD), _curvature(s["road"])
        forward = dt * speed * np.cos(heading) / (1 - offset * curvature)
        turning = TURN * action[:, 0] - DAMPING * yaw_rate
        if self.gust:
            turning = turning + self.gust * normal(self.key, self.clock, (1,)).numpy()[:, 0]
        car = [offset + dt * speed * np.sin(heading), heading + dt * yaw_rate - curvature * forward,
               np.clip(speed + dt * FORCE * action[:, 1], 0, MAX_SPEED), yaw_rate + dt * turning]
        s["past"] = np.concatenate([offset[:, None], s["past"][:, :-1]], 1)
        s["car"] = np.stack(car, 1).astype(np.float32)
        s["road"] = s["road"] + np.stack([forward, 0 * forward, 0 * forward], 1).astype(np.float32)
        s["box"] = s["box"] - np.stack([forward, 0 * forward], 1).astype(np.float32)
        failure = clearance(s["car"][:, 0], s["box"]) < 0
        success = (s["road"][:, 0] >= LENGTH) & ~failure
        return success.astype(np.float32) - failure, success, failure

    def expert(self):
        return LaneExpert()

    def map(self):
        half_length = LENGTH / 2
        return {"x": (0.0, LENGTH), "y": (-5.0, 5.0), "path": ("simulator.state", 0, 1), "shapes": [
            {"kind": "box", "at": (half_length, 0.0), "half": (half_length, HALF_WIDTH), "role": "start"}]}

    @property
    def square(self):
        return (-6.0, -15.0), 30.0

    def draw(self, surface, row):
        (progress, *phases), (offset, heading, *_) = self.state["road"][row], self.state["car"][row]
        ahead, offset_of_box = self.state["box"][row]
        step = 0.25
        along = np.arange(-6, 24, step, dtype=np.float32)
        roads = np.tile(np.array([progress, *phases], np.float32), (len(along), 1))
        direction = np.cumsum(step * _curvature(roads, along))
        direction -= direction[np.abs(along).argmin()]
        tangent = np.stack([np.cos(direction), np.sin(direction)], 1).astype(np.float32)
        center = np.cumsum(step * tangent, 0)
        center -= center[np.abs(along).argmin()]
        for point in center[(along > -progress) & (along < LENGTH - progress)]:
            surface.circle(point[None], HALF_WIDTH, COLOR_OF_ROLE["start"])
        if -6 < ahead < 23:
            i = np.abs(along - ahead).argmin()
            normal_of_lane = np.array([-tangent[i, 1], tangent[i, 0]])
            surface.box((center[i] + offset_of_box * normal_of_lane)[None], tangent[i][None], BOX_HALF,
                       COLOR_OF_ROLE["obstacle"])
        facing = np.array([[np.cos(heading), np.sin(heading)]], np.float32)
        surface.box(np.array([[0, offset]], np.float32), facing, (0.9, RADIUS), COLOR_OF_ROLE["agent"])


def _curvature(road: np.ndarray, ahead=0.0) -> np.ndarray:
    """Returns the curvature of the lane some distance ahead, 1/m, (rows,)."""
    waves = [a * np.sin(2 * np.pi / length * (road[:, 0] + ahead) + road[:, i])
             for i, (a, length) in enumerate(WAVES, 1)]
    return sum(waves).astype(np.float32)


def clearance(offset: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Returns the distance of the car from the edges of the lane and the box. Below 0 it touches.

    Args:
        offset: Offsets of the car, m, (rows,).
        box: Distance to the middle of the box along the lane, and its offset, m, (rows, 2).
    """
    outside = np.abs(np.stack([box[:, 0], box[:, 1] - offset], 1)) - np.array(BOX_HALF, np.float32)
    to_box = np.linalg.norm(np.maximum(outside, 0), axis=1) + np.minimum(outside.max(1), 0)
    return np.minimum(HALF_WIDTH - np.abs(offset), to_box) - RADIUS


@dataclass(frozen=True)
class LaneExpert(CountingActor):
    """Expert of `LaneDriving`: follows the center line, and passes the box on its free side.

    Args:
        clearance: Distance from the box at which it passes, m.
        noise: Standard deviation of Gaussian noise on the action.
    """

    clearance: float = 0.5
    noise: float = 0.05

    def act(self, obs, state):
        s = obs["observation.state"].double()
        ahead, side = s[:, 7], s[:, 8].sign()
        beside = (ahead < 9) & (ahead > -2.5)
        target = torch.where(beside, s[:, 8] - side * (BOX_HALF[1] + RADIUS + self.clearance), 0.0)
        heading = (0.35 * (target - s[:, 0])).clamp(-0.35, 0.35)
        action = steer(s, heading, torch.where(beside, 4.5, 6.0)).float()
        action = action + self.noise * normal(state["key"], state["count"], (2,), stream=2)
        return action, {**state, "count": state["count"] + 1}


def steer(state: torch.Tensor, heading: torch.Tensor, speed: torch.Tensor) -> torch.Tensor:
    """Returns actions that bring the car to a heading and a speed, (rows, 2).

    Args:
        state: observation.state, (rows, 12).
        heading: Relative to the lane, rad, (rows,).
        speed: How fast, m/s, (rows,).
    """
    yaw_rate = state[:, 4] * state[:, 2] + 2.5 * (heading - state[:, 1])
    steering = (DAMPING * yaw_rate + 6.0 * (yaw_rate - state[:, 3])) / TURN
    return torch.stack([steering, speed - state[:, 2]], 1).clamp(-1, 1)

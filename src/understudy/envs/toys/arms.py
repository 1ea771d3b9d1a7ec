"""A toy in which two hands carry a bar that neither can carry alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ...core import normal, uniform
from ...execute.actor import CountingActor
from ..raster import COLOR_OF_ROLE, Drawable
from ..toy import Toy, distance, named_vector

WIDE, HIGH = 2.0, 1.2  # m, of the space seen from the side
LENGTH = 0.6  # m, of the bar
FLOOR = 0.1  # m: the height at which it lies
GRIP = 0.05  # m: a hand as near to its end of the bar takes hold
STRETCH = 0.03  # m: hands that come closer or go apart by more, in one step, lose the bar
TILT = 0.4  # sine of the angle at which it slides off
RADIUS = 0.06  # m, of the goal
SPEED = 0.5  # m/s
STATE = ("left.x", "left.y", "right.x", "right.y", "bar.x", "bar.y", "bar.cos", "bar.sin", "left.holds", "right.holds",
         "goal.x", "goal.y")
SIGN = np.array([-1, 1], np.float32)[:, None]  # of the left and the right end


class Arms(Toy, Drawable):
    """Toy environment in which two hands carry a bar from the floor to a goal.

    Each hand grasps one end of the bar. While only one hand holds it, the bar and this hand do not move. Hands whose
    distance changes too much in a step, or that tilt the bar, drop it.

    observation.state (12): positions of both hands and of the bar's middle, m; cosine and sine of its angle; whether
    the left and the right hand hold it (0 or 1); the goal, m. action (4): velocities of the left and the right hand,
    m/s, clipped to [-0.5, 0.5]. A step is 0.1 s. A hand that reaches its end grasps it. The middle of the bar at the
    goal ends the episode with reward 1, a dropped bar with -1.

    Best possible success: 1.0. `ArmsExpert(noise=0)` attains it.
    """

    low, high = -SPEED, SPEED

    def __init__(self, rows: int = 1, limit: int = 80):
        self.features = {"observation.state": named_vector(*STATE),
                         "action": named_vector("left.x", "left.y", "right.x", "right.y", unit="m/s")}
        self.metadata = {"env": "arms", "version": 1, "fps": 10, "limit": limit, "optimum": 1.0,
                         "success": f"the middle of the bar, held by both hands, within {RADIUS} m of the goal"}
        super().__init__(rows, limit)

    def initial_state(self, key):
        drawn = uniform(key, torch.zeros_like(key), (7,)).numpy().astype(np.float32)
        hands = np.array([[0.3, 0.8], [1.7, 0.8]], np.float32) + 0.4 * (drawn[:, :4].reshape(-1, 2, 2) - 0.5)
        bar = np.stack([0.7 + 0.6 * drawn[:, 4], np.full(len(key), FLOOR, np.float32)], 1)
        goal = np.stack([0.6 + 0.8 * drawn[:, 5], 0.6 + 0.3 * drawn[:, 6]], 1)
        return {"hands": hands, "bar": bar, "heading": np.tile(np.array([1, 0], np.float32), (len(key), 1)),
                "holds": np.zeros((len(key), 2), bool), "goal": goal}

    def observe(self):
        s = self.state
        return {"observation.state": np.concatenate([
            s["hands"].reshape(self.rows, 4), s["bar"], s["heading"], s["holds"].astype(np.float32), s["goal"]], 1)}

    def state_from_columns(self, steps):
        hands, bar, heading, holds, goal = np.split(steps["observation.state"], (4, 6, 8, 10), 1)
        return {"hands": hands.reshape(-1, 2, 2), "bar": bar, "heading": heading, "holds": holds > 0.5, "goal": goal}

    def advance(self, action):
        s = self.state
        both = np.all(s["holds"], 1)
        went = np.clip(s["hands"] + np.float32(0.1) * action.reshape(-1, 2, 2), 0, np.array([WIDE, HIGH], np.float32))
        span = went[:, 1] - went[:, 0]
        length = np.maximum(distance(span, 0), 1e-6)
        failure = both & ((np.abs(length - LENGTH) > STRETCH) | (np.abs(span[:, 1]) > TILT * length))
        s["bar"] = np.where(both[:, None], went.mean(1), s["bar"])
        s["heading"] = np.where(both[:, None], span / length[:, None], s["heading"])
        ends = s["bar"][:, None] + LENGTH / 2 * SIGN * s["heading"][:, None]
        s["holds"] = s["holds"] | (distance(went, ends) < GRIP)
        s["hands"] = np.where(s["holds"][..., None], ends, went)
        success = both & ~failure & (distance(s["bar"], s["goal"]) < RADIUS)
        return success.astype(np.float32) - failure, success, failure

    def expert(self):
        return ArmsExpert()

    def map(self):
        return {"x": (0.0, WIDE), "y": (0.0, HIGH), "path": ("observation.state", 4, 5), "shapes": [], "marks": [
            {"kind": "circle", "column": ("observation.state", 10, 11), "radius": RADIUS, "role": "goal"}]}

    @property
    def square(self):
        return (0.0, (HIGH - WIDE) / 2), WIDE

    def draw(self, surface, row):
        s = {k: v[row:row + 1] for k, v in self.state.items()}
        surface.box(
            np.array([[WIDE / 2, 0.0]], np.float32), np.array([[1, 0]], np.float32), (WIDE / 2, FLOOR - 0.03),
            COLOR_OF_ROLE["start"],
        )
        surface.circle(s["goal"], 1.6 * RADIUS, COLOR_OF_ROLE["goal"])
        surface.box(s["bar"], s["heading"], (LENGTH / 2, 0.03), COLOR_OF_ROLE["block"])
        for i in (0, 1):
            surface.circle(
                s["hands"][:, i], 0.06, COLOR_OF_ROLE["agent"] if s["holds"][0, i] else COLOR_OF_ROLE["waypoint"]
            )


@dataclass(frozen=True)
class ArmsExpert(CountingActor):
    """Expert of `Arms`: moves each hand to an end of the bar, waits until both hold it, and carries it to the goal.

    Args:
        noise: Standard deviation of Gaussian noise on the action, m/s.
    """

    noise: float = 0.03

    def act(self, obs, state):
        hands, bar, heading, holds, goal = obs["observation.state"].split((4, 2, 2, 2, 2), 1)
        hands = hands.unflatten(1, (2, 2))
        sign = torch.from_numpy(SIGN)
        reach = bar[:, None] + LENGTH / 2 * sign * heading[:, None] - hands
        level = torch.stack([torch.zeros(len(bar), 2), -sign[:, 0] * heading[:, 1:]], 2)
        carry = (goal - bar)[:, None] + 0.1 * level
        aim = torch.where(holds.bool().all(1)[:, None, None], carry, reach * (1 - holds[..., None]))
        length = (aim * aim).sum(2, keepdim=True).sqrt()
        action = (SPEED * aim / length.clamp(min=0.1)).flatten(1)
        action = action + self.noise * normal(state["key"], state["count"], (4,), stream=2)
        return action, {**state, "count": state["count"] + 1}

"""A toy that needs memory: a cue at the start of a T-shaped corridor says where to turn at its end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ...core import UserError, normal, uniform
from ...execute.actor import Actor
from ..toy import MapToy, named_vector

ARM = 0.5  # m: from the corridor to the end of either arm
GOAL = 0.1  # m: radius of the goals at the ends


class MemoryCorridor(MapToy):
    """Toy in which a point walks along a corridor to a junction and turns as a light said at the start.

    A policy that reads the present observation alone can only guess. The corridor has no width, so that the position
    does not reveal the cue later.

    observation.state (3): position, m, and the light: +1 left, -1 right, 0 once it is off. simulator.state (2): the
    cue, and for how many more steps it is shown. action (2): velocity, m/s, clipped to [-1, 1]. A step is 0.1 s. The
    end of the right arm ends the episode with reward 1, the end of the wrong arm with -1.

    Best possible success: 1.0, attained by `MemoryExpert(noise=0)`. Without memory it is 0.5
    (`metadata["memoryless"]`).

    Args:
        length: Length of the corridor, m.
        shown: Number of steps for which the light is on.

    References:
        Bakker (2001), Reinforcement Learning with Long Short-Term Memory. Its T-maze has discrete steps.
    """

    state_columns = ("observation.state", "simulator.state")

    def __init__(self, rows: int = 1, limit: int = 60, length: float = 1.8, shown: int = 3):
        if not length > 0 or shown < 1:
            raise UserError(f"the length must be above 0 and the light shown for 1 step or more, but length={length}, "
                            f"shown={shown}", where="memory", hint="such as length=1.8, shown=3")
        self.length, self.cue_steps = np.float32(length), shown
        self.features = {
            "observation.state": named_vector("x", "y", "light"),
            "simulator.state": named_vector("cue", "left"),
            "action": named_vector("x", "y", unit="m/s"),
        }
        self.metadata = {"env": "memory", "version": 1, "fps": 10, "limit": limit, "optimum": 1.0, "memoryless": 0.5,
                         "success": f"within {GOAL} m of the end of the arm that the light pointed to"}
        super().__init__(rows, limit)

    def initial_state(self, key):
        drawn = uniform(key, torch.zeros_like(key), (2,)).numpy()
        at = np.stack([0.4 * drawn[:, 0], np.zeros(len(key))], 1).astype(np.float32)
        return {"at": at, "cue": np.where(drawn[:, 1] < 0.5, 1, -1).astype(np.float32),
                "cue_steps_left": np.full(len(key), self.cue_steps, np.float32)}

    def observe(self):
        s = self.state
        light = np.where(s["cue_steps_left"] > 0, s["cue"], 0).astype(np.float32)
        return {"observation.state": np.concatenate([s["at"], light[:, None]], 1),
                "simulator.state": np.stack([s["cue"], s["cue_steps_left"]], 1)}

    def state_from_columns(self, steps):
        cue, remaining_steps = steps["simulator.state"].T
        return {"at": steps["observation.state"][:, :2], "cue": cue, "cue_steps_left": remaining_steps}

    def advance(self, action):
        s = self.state
        x, y = s["at"].T
        forward, aside = np.float32(0.1) * action.T
        junction = x >= self.length
        y = np.where(junction, np.clip(y + aside, -ARM, ARM), y)
        x = np.where(y != 0, x, np.clip(x + forward, 0, self.length))  # an arm has no width either
        s["at"], s["cue_steps_left"] = np.stack([x, y], 1), np.maximum(s["cue_steps_left"] - 1, 0)
        success, failure = (side * y * s["cue"] > ARM - GOAL for side in (1, -1))
        return success.astype(np.float32) - failure, success, failure

    def expert(self):
        return MemoryExpert(float(self.length))

    def map(self):
        arm = {"kind": "circle", "radius": GOAL, "role": "goal"}
        end, middle = float(self.length), float(self.length) / 2
        return {"x": (-0.1, end + 0.2), "y": (-0.7, 0.7), "path": ("observation.state", 0, 1), "shapes": [
            {"kind": "box", "at": (middle, 0.0), "half": (middle, 0.05), "role": "start"},
            {"kind": "box", "at": (end, 0.0), "half": (0.05, ARM), "role": "start"},
            {**arm, "at": (end, ARM)}, {**arm, "at": (end, -ARM)}]}

    def state_shapes(self, row):
        x, y = self.state["at"][row]
        light = float(self.state["cue"][row]) if self.state["cue_steps_left"][row] > 0 else 0.0
        lamp = [{"kind": "circle", "at": (float(self.length) / 2, 0.25 * light), "radius": 0.06, "role": "waypoint"}]
        return [*(lamp if light else ()), {"kind": "circle", "at": (x, y), "radius": 0.04, "role": "agent"}]


@dataclass(frozen=True)
class MemoryExpert(Actor):
    """Expert of `MemoryCorridor`: remembers the light and turns to its side at the junction.

    Args:
        length: Length of the corridor, m.
        noise: Standard deviation of Gaussian noise on the action, m/s.
    """

    length: float = 1.8
    noise: float = 0.1

    def start(self, obs, key):
        return {"key": key, "count": torch.zeros_like(key), "cue": obs["observation.state"][:, 2].clone()}

    def act(self, obs, state):
        x, _, light = obs["observation.state"].T
        cue = torch.where(light == 0, state["cue"], light)
        is_at_junction = (x >= np.float32(self.length)).float()
        action = torch.stack([1 - is_at_junction, is_at_junction * cue], 1)
        action = action + self.noise * normal(state["key"], state["count"], (2,), stream=2)
        return action, {**state, "count": state["count"] + 1, "cue": cue}

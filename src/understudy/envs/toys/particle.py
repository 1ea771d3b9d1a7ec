"""A particle in N dimensions that visits one point and then another (Florence et al. 2021, Implicit Behavioral
Cloning): how a method scales with the number of dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ...core import Feature, UserError, normal, uniform
from ...execute.actor import Actor
from ..toy import MapToy, distance, length, named_vector

PERIOD, SUBSTEPS = 0.005, 10  # s: integrated at 200 Hz, controlled at 20 Hz
STIFFNESS, DAMPING = 10.0, 5.0  # of the controller that follows the target, 1/s^2 and 1/s
RADIUS = 0.05


class Particle(MapToy):
    """Toy with a unit mass in the unit cube that a PD controller draws first to one goal, then to another.

    observation.state (4 dim): position, velocity, first goal, second goal. simulator.state (1): whether the first goal
    has been visited, which is needed to restore a state. action (dim): target position, clipped to [0, 1]. A step is
    0.05 s.

    The constants come from the paper's code. Unless `stay` is set, two rules differ from this code: the order of the
    goals counts, and the episode ends on arrival at the second goal (reward 1) instead of after 50 steps.

    Best possible success: 1.0, in at least up to 32 dimensions. `ParticleExpert()` attains it.

    Args:
        fully_observed: Also observe whether the first goal has been visited, as the last component of
            observation.state. Value and reward learning need a Markov observation.
        stay: The rules of the paper's code. Each episode takes `limit` steps. It succeeds if the particle has visited
            the first goal by then and is at the second goal after the last step.
        goals: Positions of the first and of the second goal, for all episodes. None draws them.

    References:
        Florence et al. (2021), Implicit Behavioral Cloning, arXiv:2109.00137.
    """

    low = 0.0
    state_columns = ("observation.state", "simulator.state")

    def __init__(self, rows: int = 1, limit: int = 50, dim: int = 2, fully_observed: bool = False,
                 stay: bool = False, goals: tuple[tuple[float, ...], tuple[float, ...]] | None = None):
        if dim < 2:
            raise UserError(f"needs at least 2 dimensions, but has {dim}", where="particle", hint="such as dim=2")
        if goals is not None and np.shape(goals) != (2, dim):
            raise UserError(f"goals are {goals}, which are not two positions of {dim} numbers", where="particle",
                            hint="such as goals=((0.2, 0.8), (0.5, 0.5))")
        self.dim, self.fully_observed, self.stay, self.goals = dim, fully_observed, stay, goals
        axes = tuple("xy") if dim == 2 else tuple(f"x{i}" for i in range(dim))
        self.features = {
            "observation.state": named_vector(
                *(f"{what}.{a}" for what in ("at", "speed", "first", "second") for a in axes),
                *(("visited",) if fully_observed else ()),
            ),
            "simulator.state": named_vector("visited"),
            "action": Feature("float32", (dim,), names=axes),
        }
        then = f"within {RADIUS} of the second" + " after the last step" * stay
        self.metadata = {"env": "particle" if dim == 2 else f"particle:{dim}", "version": 1, "fps": 20, "limit": limit,
                         "optimum": 1.0, "success": f"within {RADIUS} of the first goal, and after that {then}"}
        super().__init__(rows, limit)

    def initial_state(self, key):
        drawn = uniform(key, torch.zeros_like(key), (3, self.dim)).numpy().astype(np.float32)
        if self.goals is not None:
            drawn[:, 1:] = self.goals
        return {"at": drawn[:, 0], "speed": np.zeros_like(drawn[:, 0]), "first": drawn[:, 1], "second": drawn[:, 2],
                "visited": np.zeros(len(key), bool)}

    def observe(self):
        s = self.state
        visited = s["visited"][:, None].astype(np.float32)
        parts = [s["at"], s["speed"], s["first"], s["second"], *([visited] if self.fully_observed else [])]
        return {"observation.state": np.concatenate(parts, 1), "simulator.state": visited}

    def state_from_columns(self, steps):
        at, speed, first, second = np.split(steps["observation.state"][:, : 4 * self.dim], 4, 1)
        return {"at": at, "speed": speed, "first": first, "second": second,
                "visited": steps["simulator.state"][:, 0] > 0.5}

    def advance(self, action):
        s = self.state
        for _ in range(SUBSTEPS):
            pull = STIFFNESS * (action - s["at"]) - DAMPING * s["speed"]
            s["at"], s["speed"] = s["at"] + PERIOD * s["speed"], s["speed"] + PERIOD * pull
        success = s["visited"] & (distance(s["at"], s["second"]) < RADIUS)
        if self.stay:
            success = success & (self.clock.numpy() >= self.limit)
        s["visited"] = s["visited"] | (distance(s["at"], s["first"]) < RADIUS)
        return success, success, np.zeros_like(success)

    def expert(self):
        return ParticleExpert()

    def map(self):
        mark = {"kind": "circle", "radius": RADIUS}
        return {"x": (0.0, 1.0), "y": (0.0, 1.0), "path": ("observation.state", 0, 1), "shapes": [],
                "control": {"column": "observation.state", "components": (0, 1), "step": None}, "marks": [
            {**mark, "column": ("observation.state", 2 * self.dim, 2 * self.dim + 1), "role": "waypoint"},
            {**mark, "column": ("observation.state", 3 * self.dim, 3 * self.dim + 1), "role": "goal"}]}

    def state_shapes(self, row):
        s = {k: v[row] for k, v in self.state.items()}
        return [
            {"kind": "circle", "at": tuple(s["first"][:2]), "radius": RADIUS, "role": "waypoint"},
            {"kind": "circle", "at": tuple(s["second"][:2]), "radius": RADIUS, "role": "goal"},
            {"kind": "circle", "at": tuple(s["at"][:2]), "radius": 0.02, "role": "agent"}]


@dataclass(frozen=True)
class ParticleExpert(Actor):
    """Expert of `Particle`: moves to the first goal until it is within `near` of it, then to the second.

    Args:
        near: Distance at which the first goal counts as visited.
        noise: Standard deviation of Gaussian noise on the target position.
    """

    near: float = 0.04
    noise: float = 0.0

    def start(self, obs, key):
        return {"key": key, "count": torch.zeros_like(key), "onward": torch.zeros_like(key, dtype=torch.bool)}

    def act(self, obs, state):
        observed = obs["observation.state"]
        vectors = observed[:, : observed.shape[1] // 4 * 4]  # without the flag, if there is one
        position, _, first, second = vectors.chunk(4, 1)
        onward = state["onward"] | (length(position - first)[:, 0] < self.near)
        target = torch.where(onward.unsqueeze(1), second, first)
        if self.noise:
            target = target + self.noise * normal(state["key"], state["count"], tuple(target.shape[1:]), stream=2)
        return target, {**state, "count": state["count"] + 1, "onward": onward}

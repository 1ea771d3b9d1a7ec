"""A toy with a peg and a hole in the plane: contact, and precision that can be set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ...core import UserError, normal, uniform
from ...execute.actor import CountingActor
from ..toy import MapToy, named_vector

DEPTH = 0.1  # m that the peg must go in
ARM = 0.2  # m: a peg turned by an angle needs ARM times that angle more room
STEP = np.array([0.05, 0.05, 0.2], np.float32)  # of an action of 1: m, m and rad
OUTLINES = 5
POINTS = 8  # distances of the outline from its center, in evenly spaced directions
TURN = np.linspace(-0.8, 0.8, OUTLINES, dtype=np.float32)  # rad: how the peg of each outline must stand to the hole
RADII = (0.08 + 0.02 * np.cos(np.arange(POINTS) * np.pi / 4 * (1 + np.arange(OUTLINES))[:, None]
                              + np.arange(OUTLINES)[:, None])).astype(np.float32)


class PegInsertion(MapToy):
    """A peg goes into a hole in a wall. The wall stands anywhere and at any angle, and the peg slides along it on
    contact. It goes in only where its offset and its angle leave room within the tolerance, and then stays aligned.
    How the peg must be turned depends on its outline, which the observation shows as numbers: what is learned for one
    outline does not work for another.

    observation.state (3): position of the peg's tip, m, and its angle, rad. observation.environment_state (11):
    position and angle of the hole, and eight distances that describe the outline, m. action (3): velocity of the tip
    and of the angle, clipped to [-1, 1]; a step of 1 is 0.05 m and 0.2 rad. A peg that is 0.1 m deep ends the episode
    with reward 1. info["outline"]: the number of the outline.

    Best possible success: 1.0. `PegInsertionExpert(noise=0)` attains it at every tolerance.

    Args:
        tolerance: Half of what the hole is wider than the peg, m. Smaller is harder.
        outlines: Which outlines there are, numbers from 0 to 4. Train on some and evaluate on others.
    """

    state_columns = ("observation.state", "observation.environment_state")

    def __init__(self, rows: int = 1, limit: int = 80, tolerance: float = 0.01,
                 outlines: tuple[int, ...] = tuple(range(OUTLINES))):
        if not 0 < tolerance <= 0.1:
            raise UserError(f"tolerance is {tolerance}", where="peg_insertion",
                            hint="give a length above 0 and up to 0.1 m, such as 0.01")
        if not outlines or not set(outlines) <= set(range(OUTLINES)):
            raise UserError(f"outlines are {list(outlines)}", where="peg_insertion",
                            hint=f"give some of the numbers 0 to {OUTLINES - 1}")
        self.tolerance, self.outlines = np.float32(tolerance), np.array(outlines)
        self.features = {
            "observation.state": named_vector("x", "y", "angle"),
            "observation.environment_state": named_vector("hole.x", "hole.y", "hole.angle",
                                                          *(f"outline.{i}" for i in range(POINTS))),
            "action": named_vector("x", "y", "angle")}
        self.metadata = {"env": "peg_insertion", "version": 1, "fps": 10, "limit": limit, "optimum": 1.0,
                         "success": f"the peg is {DEPTH} m deep in the hole"}
        super().__init__(rows, limit)

    def initial_state(self, key):
        drawn = uniform(key, torch.zeros_like(key), (7,)).numpy()
        outline = self.outlines[(drawn[:, 0] * len(self.outlines)).astype(np.int64)]
        hole = np.concatenate([0.4 * (drawn[:, 1:3] - 0.5), 2 * np.pi * (drawn[:, 3:4] - 0.5)], 1).astype(np.float32)
        away = np.stack([0.8 * (drawn[:, 4] - 0.5), 0.3 + 0.3 * drawn[:, 5], 1.6 * (drawn[:, 6] - 0.5)], 1)
        return {"peg": _to_world(away.astype(np.float32), hole, outline), "hole": hole, "outline": outline}

    def observe(self):
        s = self.state
        return {"observation.state": s["peg"],
                "observation.environment_state": np.concatenate([s["hole"], RADII[s["outline"]]], 1)}

    def state_from_columns(self, steps):
        around = steps["observation.environment_state"]
        return {"peg": steps["observation.state"], "hole": around[:, :3], "outline": outline_of(around[:, 3:])}

    def advance(self, action):
        s = self.state
        before = to_hole(s["peg"], s["hole"], s["outline"])
        u, v, turn = to_hole(s["peg"] + STEP * action, s["hole"], s["outline"]).T
        inside = before[:, 1] < -1e-4  # on the wall, rounding may give a little less than 0
        turn = np.where(inside, np.clip(turn, -self.tolerance / ARM, self.tolerance / ARM), turn)
        room = self.tolerance - np.float32(ARM) * np.abs(turn)
        u = np.where(inside, np.clip(u, -np.maximum(room, 0), np.maximum(room, 0)), u)
        v = np.where(~inside & (v < 0) & (np.abs(u) > room), np.float32(0), np.maximum(v, np.float32(-DEPTH)))
        success = v <= -DEPTH
        s["peg"] = _to_world(np.stack([u, v, turn], 1).astype(np.float32), s["hole"], s["outline"])
        return success, success, np.zeros_like(success)

    def numbers(self):
        return {"outline": self.state["outline"]}

    def expert(self):
        return PegInsertionExpert(float(self.tolerance))

    def map(self):
        return {"x": (-1.0, 1.0), "y": (-1.0, 1.0), "path": ("observation.state", 0, 1), "shapes": [], "marks": [
            {"kind": "circle", "column": ("observation.environment_state", 0, 1), "radius": 0.04, "role": "goal"}]}

    def state_shapes(self, row):
        peg, hole, outline = (self.state[k][row] for k in ("peg", "hole", "outline"))

        def placed(u, v, half, role):
            at = _to_world(np.array([[u, v, 0.0]], np.float32), hole[None], np.array([outline]))[0]
            heading = (float(np.cos(hole[2])), float(np.sin(hole[2])))
            return {"kind": "box", "at": tuple(at[:2]), "half": half, "heading": heading, "role": role}
        wide = 0.04
        gap = wide + float(self.tolerance)
        shapes = [placed(side * (gap + 0.6), -0.1, (0.6, 0.1), "obstacle") for side in (-1, 1)]
        shapes.append(placed(0, -0.16, (gap, 0.04), "goal"))
        angle = float(peg[2] - TURN[outline])
        axis = np.array([-np.sin(angle), np.cos(angle)])
        shapes += [{"kind": "box", "at": tuple(peg[:2] + 0.1 * axis), "half": (wide, 0.1), "role": "agent",
                    "heading": (np.cos(angle), np.sin(angle))}]
        center = peg[:2] + 0.2 * axis
        for i, radius in enumerate(RADII[outline]):
            direction = peg[2] + i * np.pi / 4
            at = center + radius * np.array([np.cos(direction), np.sin(direction)])
            shapes.append({"kind": "circle", "at": tuple(at), "radius": 0.025, "role": "block"})
        return shapes


def to_hole(peg: np.ndarray, hole: np.ndarray, outline: np.ndarray) -> np.ndarray:
    """Converts poses of pegs to the frames of their holes.

    Args:
        peg: Position and angle in the world, (n, 3).
        hole: Position and angle of the hole, (n, 3).
        outline: Number of the outline, (n,).

    Returns:
        (n, 3): offset along the wall, distance from it (below 0 inside the hole), and angle to the right one, in
        [-pi, pi).
    """
    cos, sin = np.cos(hole[:, 2]), np.sin(hole[:, 2])
    x, y = (peg[:, :2] - hole[:, :2]).T
    turn = (peg[:, 2] - hole[:, 2] - TURN[outline] + np.float32(np.pi)) % np.float32(2 * np.pi) - np.float32(np.pi)
    return np.stack([cos * x + sin * y, cos * y - sin * x, turn], 1)


def _to_world(pose, hole, outline):
    """Converts poses from the frames of holes to the world, the inverse of `to_hole`."""
    cos, sin = np.cos(hole[:, 2]), np.sin(hole[:, 2])
    u, v, turn = pose.T
    return np.stack([hole[:, 0] + cos * u - sin * v, hole[:, 1] + sin * u + cos * v, turn + hole[:, 2] + TURN[outline]],
                    1).astype(np.float32)


def outline_of(radii: np.ndarray) -> np.ndarray:
    """Returns the number of the outline that is nearest to each description (n, 8), (n,) int64."""
    return np.square(radii[:, None] - RADII).sum(2).argmin(1)


@dataclass(frozen=True)
class PegInsertionExpert(CountingActor):
    """Expert of `PegInsertion`: lines the peg up close to the wall, and then pushes it in.

    On contact beside the hole it slides back to it.

    Args:
        tolerance: Of the environment, m.
        noise: Standard deviation of its unsteadiness, as a fraction of the largest action.
    """

    tolerance: float
    noise: float = 0.1

    def act(self, obs, state):
        around = obs["observation.environment_state"].numpy()
        hole = around[:, :3]
        u, v, turn = to_hole(obs["observation.state"].numpy(), hole, outline_of(around[:, 3:])).T
        fits = np.abs(u) + ARM * np.abs(turn) < 0.5 * self.tolerance
        ahead = np.where(fits | (v < 0), -2 * DEPTH - v, 0.03 - v)
        wish = np.stack([-u, np.where((v < 0.05) & ~fits & (v >= 0), 0.0, ahead), -turn], 1) / STEP
        wish = np.clip(wish, -1, 1)
        cos, sin = np.cos(hole[:, 2]), np.sin(hole[:, 2])
        action = np.stack([cos * wish[:, 0] - sin * wish[:, 1], sin * wish[:, 0] + cos * wish[:, 1], wish[:, 2]], 1)
        action = torch.from_numpy(action.astype(np.float32))
        # Close to the goal it moves slowly, and trembles less.
        calm = torch.from_numpy(np.clip(np.abs(wish).max(1, keepdims=True), 0.02, 1))
        action = action + self.noise * calm * normal(state["key"], state["count"], (3,), stream=2)
        return action.float(), {**state, "count": state["count"] + 1}

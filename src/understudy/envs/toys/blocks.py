"""A toy in which a disc pushes two blocks onto two targets, in any order and assignment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ...core import UserError, normal, uniform
from ...execute.actor import Actor
from ..raster import COLOR_OF_ROLE, Drawable
from ..toy import Toy, distance, length, named_vector, push_apart, unit

SIDE = 1.0  # m, of the table
DISC, BLOCK = 0.035, 0.06  # m, radii
RADIUS = 0.05  # m: as near to a target's centre a block is on it
SPEED = 0.4  # m/s
PERIOD, SUBSTEPS = 0.02, 5  # s; a substep moves the disc by at most 11 mm, much less than it is wide
# Of the disc, the blocks and the targets.
CENTERS = np.array([[0.5, 0.12], [0.33, 0.36], [0.67, 0.36], [0.3, 0.78], [0.7, 0.78]], np.float32)
SPREAD = np.array([0.08, 0.05, 0.05, 0.04, 0.04], np.float32)  # m: how far from these they begin at most, per axis
STATE = ("agent.x", "agent.y", "left.x", "left.y", "right.x", "right.y", "left_target.x", "left_target.y",
         "right_target.x", "right_target.y")
MODES = ("the left block first, to the left", "the left block first, to the right",
         "the right block first, to the left", "the right block first, to the right")
COLORS = COLOR_OF_ROLE["block"], (222, 150, 70)


class Blocks(Toy, Drawable):
    """A disc pushes two blocks onto two targets. The order of the blocks and their targets are free, which makes four
    ways.

    It is the task of multimodal block pushing (Shafiullah et al. 2022) in the plane. Blocks are round. Contact is
    quasi-static and without friction: overlapping bodies are pushed apart along the line between their centers, the
    block out of the disc, two blocks by half each. At the edge of the table the disc gives way.

    observation.state (10): positions of disc, blocks and targets, m. simulator.state (1): which block reached a target
    first (0 left, 1 right, -1 none), which is needed to restore a state. action (2): velocity of the disc, m/s, clipped
    to [-0.4, 0.4]. A step is 0.1 s. Both blocks on targets end the episode with reward 1. info["mode"]: number of the
    way in `metadata["modes"]`, from when a block lies on a target.

    Best possible success: 1.0. `BlocksExpert(noise=0)` attains it, in each of the four ways.

    References:
        Shafiullah et al. (2022), Behavior Transformers: Cloning k Modes with One Stone, arXiv:2206.11251.
    """

    low, high = -SPEED, SPEED
    state_columns = ("observation.state", "simulator.state")

    def __init__(self, rows: int = 1, limit: int = 150):
        self.features = {"observation.state": named_vector(*STATE, unit="m"), "simulator.state": named_vector("first"),
                         "action": named_vector("x", "y", unit="m/s")}
        self.metadata = {"env": "blocks", "version": 1, "fps": 10, "limit": limit, "optimum": 1.0, "modes": MODES,
                         "success": f"each block within {RADIUS} m of a target of its own"}
        super().__init__(rows, limit)

    def initial_state(self, key):
        drawn = 2 * uniform(key, torch.zeros_like(key), (5, 2)).numpy().astype(np.float32) - 1
        at = CENTERS + SPREAD[:, None] * drawn
        return {"disc": at[:, 0], "blocks": at[:, 1:3], "targets": at[:, 3:], "first": np.full(len(key), -1, np.int64)}

    def observe(self):
        s = self.state
        flat = [s["disc"], *(s[k].reshape(self.rows, 4) for k in ("blocks", "targets"))]
        return {"observation.state": np.concatenate(flat, 1), "simulator.state": s["first"][:, None].astype(np.float32)}

    def state_from_columns(self, steps):
        disc, blocks, targets = np.split(steps["observation.state"], (2, 6), 1)
        return {"disc": disc, "blocks": blocks.reshape(-1, 2, 2), "targets": targets.reshape(-1, 2, 2),
                "first": np.rint(steps["simulator.state"][:, 0]).astype(np.int64)}

    def advance(self, action):
        s = self.state
        for _ in range(SUBSTEPS):
            disc = np.clip(s["disc"] + PERIOD * action, DISC, SIDE - DISC)
            blocks = s["blocks"] + push_apart(disc[:, None], s["blocks"], DISC + BLOCK)
            for _ in range(4):  # halves what the edge leaves of an overlap, each time
                apart = push_apart(blocks[:, 0], blocks[:, 1], 2 * BLOCK) / 2
                blocks = np.clip(blocks + np.stack([-apart, apart], 1), BLOCK, SIDE - BLOCK)
            for i in (0, 1):  # what is pressed against the edge or the other block stays, and the disc yields
                disc = disc + push_apart(blocks[:, i], disc, DISC + BLOCK)
            s["disc"], s["blocks"] = disc, blocks
        on = self._on_target()
        is_placed = on.any(2)
        stays = np.take_along_axis(is_placed, np.maximum(s["first"], 0)[:, None], 1)[:, 0] & (s["first"] >= 0)
        s["first"] = np.where(stays, s["first"], np.where(is_placed.any(1), is_placed.argmax(1), -1))
        success = on[:, 0, 0] & on[:, 1, 1] | on[:, 0, 1] & on[:, 1, 0]
        return success, success, np.zeros_like(success)

    def _on_target(self):
        """Returns which block is on which target, (rows, block, target) bool."""
        return distance(self.state["blocks"][:, :, None], self.state["targets"][:, None]) < RADIUS

    def numbers(self):
        first = self.state["first"]
        to = self._on_target()[np.arange(self.rows), np.maximum(first, 0)].argmax(1)
        return {"mode": np.where(first < 0, -1, 2 * first + to)}

    def expert(self):
        return BlocksExpert()

    def map(self):
        mark = {"kind": "circle", "radius": RADIUS, "role": "goal"}
        return {"x": (0.0, SIDE), "y": (0.0, SIDE), "path": ("observation.state", 0, 1), "shapes": [], "marks": [
            {**mark, "column": ("observation.state", 6, 7)}, {**mark, "column": ("observation.state", 8, 9)}]}

    @property
    def square(self):
        return (0.0, 0.0), SIDE

    def draw(self, surface, row):
        s = {k: v[row:row + 1] for k, v in self.state.items()}
        for i in (0, 1):
            surface.circle(s["targets"][:, i], BLOCK + 0.02, COLOR_OF_ROLE["goal"])
        for i in (0, 1):
            surface.circle(s["blocks"][:, i], BLOCK, COLORS[i])
        surface.circle(s["disc"], DISC, COLOR_OF_ROLE["agent"])


@dataclass(frozen=True)
class BlocksExpert(Actor):
    """Expert of `Blocks`: pushes one block to a target, then the other block to the other target.

    It follows the field lines of a dipole at the block (see `PushExpert`), and avoids the other block.

    Args:
        mode: Number of the way in `MODES`. None draws one with the key of the episode.
        noise: Standard deviation of Gaussian noise on the action, m/s.
    """

    mode: int | None = None
    noise: float = 0.03

    def __post_init__(self):
        if self.mode not in (None, 0, 1, 2, 3):
            raise UserError(f"the mode is {self.mode}, but must be None or from 0 to 3", where="blocks",
                            hint="None draws one for each episode")

    def start(self, obs, key):
        drawn = (4 * uniform(key, torch.zeros_like(key), (1,), stream=6)[:, 0]).long()
        return {"key": key, "count": torch.zeros_like(key), "onward": torch.zeros_like(key, dtype=torch.bool),
                "way": drawn if self.mode is None else torch.full_like(drawn, self.mode)}

    def act(self, obs, state):
        disc, *points = obs["observation.state"].split(2, 1)
        blocks, targets = torch.stack(points[:2], 1), torch.stack(points[2:], 1)
        rows, block, target = torch.arange(len(disc)), state["way"] // 2, state["way"] % 2
        placed = length(blocks[rows, block] - targets[rows, target])[:, 0] < 0.5 * RADIUS
        onward = state["onward"] | placed
        block, target = (torch.where(onward, 1 - x, x) for x in (block, target))
        pushed, other, goal = blocks[rows, block], blocks[rows, 1 - block], targets[rows, target]
        away, ahead = unit(disc - pushed), unit(goal - pushed)
        facing = (away * ahead).sum(1, keepdim=True)  # -1 where a push leads to the goal
        field = 2 * facing * away - ahead
        around = unit(field + 20 * (1.3 * BLOCK + DISC - length(disc - pushed)) * away)
        through = field * (length(goal - pushed) / 0.1).clamp(0.3, 1)
        clear = unit(disc - other) * ((0.16 - length(disc - other)) / 0.05).clamp(0, 1)
        action = SPEED * (torch.where(facing > -0.9, around, through) + clear)
        action = action + self.noise * normal(state["key"], state["count"], (2,), stream=2)
        return action, {**state, "count": state["count"] + 1, "onward": onward}

"""A toy with colored blocks on a table, to be put into the bin that words or a click name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ...core import Feature, UserError, normal, uniform, unknown_name
from ...data.text_columns import TaskText
from ...execute.actor import CountingActor
from ..raster import COLOR_OF_ROLE, Canvas, Drawable
from ..toy import Toy, distance, length, named_vector

COLORS = {"red": (205, 70, 62), "green": (92, 160, 96), "blue": (70, 112, 190), "yellow": (226, 182, 70),
          "purple": (142, 98, 170), "orange": (226, 132, 60)}
BINS = ("left", "middle", "right")
CENTERS = np.array([[0.17, 0.9], [0.5, 0.9], [0.83, 0.9]], np.float32)  # m, of the bins
BIN = np.array([0.15, 0.09], np.float32)  # m, half of a bin's width and depth
BLOCK = 0.045  # m, half of a side
GRASP = 0.04  # m: as near as this the hand takes a block
KNOCK = 0.1  # m: how far a hand that misses a block knocks it away
TABLE, HAND = 0.2, 0.45  # m: height of the table and of the hand in the picture from the side
SPEED = 0.08  # m: how far the hand goes in one step at most
MISSIONS = tuple(f"put the {color} block into the {side} bin" for color in COLORS for side in BINS)
LENGTH = max(map(len, MISSIONS))
CONTROLS = ("velocity", "pick_and_place")
INSTRUCTIONS = ("words", "click")


class Tabletop(Toy, Drawable):
    """Toy in which a hand puts a block into a bin. The instruction consists of words or of two clicks.

    observation.state (3): position of the hand, m, and 1 if it is closed. observation.environment_state (2 a block):
    positions of the blocks, in the order of `COLORS`, m. The instruction is observation.task, as text, or
    observation.click (4): a click on the block and a click on the bin, m. observation.images.top and
    observation.images.side: pictures from above and from the front edge, if `camera_size` is not 0.

    Only the side camera shows heights: whether a block hangs in the hand or lies under it. In its picture, near blocks
    hide the blocks behind them. simulator.state (2): number of the mission, and of the held block (-1 if none), which
    are needed to restore a state.

    action: with control="velocity" (3) the velocity of the hand, where 1 is 0.08 m in a step of 0.1 s, and above 0 to
    close it. A hand that closes within 0.04 m of a block takes it, and opens to let go.

    With control="pick_and_place" (4) where to take and where to put, where -1 and 1 are the edges of the table: one
    step is a whole motion. Actions are clipped to [-1, 1]. The named block in the named bin, let go, ends the episode
    with reward 1.

    Best possible success: 1.0 without `slip`. `TabletopExpert(noise=0)` attains it.

    Args:
        control: One of `CONTROLS`.
        instruction: One of `INSTRUCTIONS`.
        blocks: Number of blocks, from 1 to 6.
        camera_size: Width and height of the pictures. 0 for none.
        slip: Probability that a hand that closes on a block misses it and knocks it 0.1 m away, in a random direction.
            Blocks stay on the table and in front of the bins.
    """

    state_columns = ("observation.state", "observation.environment_state", "simulator.state")

    def __init__(self, rows: int = 1, limit: int = 60, control: str = "velocity", instruction: str = "words",
                 blocks: int = 4, camera_size: int = 0, slip: float = 0.0):
        for kind, name, valid_names in (("control", control, CONTROLS), ("instruction", instruction, INSTRUCTIONS)):
            if name not in valid_names:
                raise unknown_name(kind, name, valid_names, "tabletop")
        if not 1 <= blocks <= len(COLORS):
            raise UserError(f"the number of blocks is {blocks}", where="tabletop", hint=f"from 1 to {len(COLORS)}")
        if not 0 <= slip <= 1:
            raise UserError(f"the probability slip is {slip}", where="tabletop", hint="from 0 to 1")
        self.control, self.instruction, self.camera_size, self.slip = control, instruction, camera_size, slip
        self.colors = tuple(COLORS)[:blocks]
        instruction_feature = (Feature("uint8", (LENGTH,), "text") if instruction == "words" else
                               named_vector("take.x", "take.y", "put.x", "put.y", unit="m"))
        parts = ("x", "y", "grip") if control == "velocity" else ("take.x", "take.y", "put.x", "put.y")
        self.features = {
            "observation.task" if instruction == "words" else "observation.click": instruction_feature,
            "observation.state": named_vector("x", "y", "closed"),
            "observation.environment_state": named_vector(*(f"{c}.{axis}" for c in self.colors for axis in "xy")),
            "simulator.state": named_vector("mission", "held"),
            "action": named_vector(*parts)}
        if camera_size:
            self.features |= {f"observation.images.{view}": Feature("uint8", (camera_size, camera_size, 3), "image")
                              for view in ("top", "side")}
        self.metadata = {"env": "tabletop" if control == "velocity" else f"tabletop:{control}", "version": 1, "fps": 10,
                         "limit": limit, "optimum": 1.0, "success": "the named block lies in the named bin"}
        super().__init__(rows, limit)

    def initial_state(self, key):
        n, count = len(key), len(self.colors)
        drawn = uniform(key, torch.zeros_like(key), (4,)).numpy()
        mission = (drawn[:, 0] * count * len(BINS)).astype(np.int64)
        order = uniform(key, torch.zeros_like(key), (12,), stream=1).numpy().argsort(1)[:, :count]  # of 4 x 3 places
        shift = uniform(key, torch.zeros_like(key), (count, 2), stream=2).numpy() - 0.5
        at = np.stack([0.14 + 0.24 * (order % 4), 0.15 + 0.21 * (order // 4)], 2) + 0.08 * shift
        hand = np.stack([0.2 + 0.6 * drawn[:, 1], 0.1 + 0.6 * drawn[:, 2]], 1)
        return {"hand": hand.astype(np.float32), "closed": np.zeros(n, bool), "held": np.full(n, -1, np.int64),
                "blocks": at.astype(np.float32), "mission": mission}

    def observe(self):
        s = self.state
        named, to = self._mission()
        instructions = (_TEXTS[s["mission"]] if self.instruction == "words" else
                        np.concatenate([s["blocks"][np.arange(self.rows), named], CENTERS[to]], 1))
        columns = {"observation.task" if self.instruction == "words" else "observation.click": instructions,
                   "observation.state": np.concatenate([s["hand"], s["closed"][:, None]], 1).astype(np.float32),
                   "observation.environment_state": s["blocks"].reshape(self.rows, -1),
                   "simulator.state": np.stack([s["mission"], s["held"]], 1).astype(np.float32)}
        if self.camera_size:
            columns |= {"observation.images.top": self._picture(self.camera_size),
                        "observation.images.side": self._side_picture(self.camera_size)}
        return columns

    def state_from_columns(self, steps):
        mission, held_block = np.rint(steps["simulator.state"]).astype(np.int64).T
        return {"hand": steps["observation.state"][:, :2], "closed": steps["observation.state"][:, 2] > 0.5,
                "held": held_block, "blocks": steps["observation.environment_state"].reshape(len(mission), -1, 2),
                "mission": mission}

    def _mission(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the numbers of the block and of the bin that the instruction names, (rows,) each."""
        return self.state["mission"] // len(BINS), self.state["mission"] % len(BINS)

    def advance(self, action):
        s, rows = self.state, np.arange(self.rows)
        if self.control == "velocity":
            s["hand"] = np.clip(s["hand"] + np.float32(SPEED) * action[:, :2], 0, 1)
            closes = action[:, 2] > 0
            s["held"] = np.where(closes & s["closed"], s["held"], self._grasp(s["hand"], closes & ~s["closed"]))
            s["closed"] = closes
        else:
            place = (action + 1) / 2
            s["held"], s["hand"] = self._grasp(place[:, :2], np.ones(self.rows, bool)), place[:, 2:]
        moved = s["blocks"].copy()
        moved[rows, np.maximum(s["held"], 0)] = s["hand"]
        s["blocks"] = np.where((s["held"] >= 0)[:, None, None], moved, s["blocks"])
        if self.control == "pick_and_place":
            s["held"] = np.full(self.rows, -1, np.int64)
        named, to = self._mission()
        inside = (np.abs(s["blocks"][rows, named] - CENTERS[to]) < BIN).all(1)
        success = inside & (s["held"] != named)
        return success, success, np.zeros_like(success)

    def _grasp(self, at: np.ndarray, closes: np.ndarray) -> np.ndarray:
        """Returns the number of the block that a hand grasps at `at`, (rows,). -1 if there is none or it slips."""
        gap, blocks = distance(self.state["blocks"], at[:, None]), self.state["blocks"]
        block = np.where(closes & (gap.min(1) < GRASP), gap.argmin(1), -1)
        drawn = uniform(self.key, self.clock, (2,)).numpy()
        slips = np.flatnonzero((block >= 0) & (drawn[:, 0] < self.slip))
        angle = 2 * np.pi * drawn[slips, 1]
        knocked = blocks[slips, block[slips]] + KNOCK * np.stack([np.cos(angle), np.sin(angle)], 1)
        blocks[slips, block[slips]] = np.clip(knocked, BLOCK, (1 - BLOCK, CENTERS[0, 1] - BIN[1] - BLOCK))
        block[slips] = -1
        return block

    def expert(self):
        return TabletopExpert(self.control)

    def map(self):
        bins = [{"kind": "box", "at": tuple(map(float, at)), "half": tuple(map(float, BIN)), "role": "goal"}
                for at in CENTERS]
        return {"x": (0.0, 1.0), "y": (0.0, 1.0), "path": ("observation.state", 0, 1), "shapes": bins}

    @property
    def square(self):
        return (0.0, 0.0), 1.0

    def draw(self, surface, row):
        self._draw(surface, slice(row, row + 1))

    def _draw(self, surface, rows):
        s = {k: v[rows] for k, v in self.state.items()}
        n = len(s["hand"])
        flat = np.tile(np.array([1, 0], np.float32), (n, 1))
        for at in CENTERS:
            surface.box(np.tile(at, (n, 1)), flat, (float(BIN[0]), float(BIN[1])), COLOR_OF_ROLE["start"])
        for i, color in enumerate(self.colors):
            surface.box(s["blocks"][:, i], flat, (BLOCK, BLOCK), COLORS[color])
        for side in (-1, 1):
            reach = np.where(s["closed"], 0.03, 0.055)[:, None] * np.array([side, 0], np.float32)
            surface.box((s["hand"] + reach).astype(np.float32), flat, (0.01, 0.035), (70, 74, 88))

    def _picture(self, size: int) -> np.ndarray:
        """Draws the picture from above, (rows, size, size, 3) uint8."""
        canvas = Canvas(self.rows, size, *self.square)
        self._draw(canvas, slice(None))
        return canvas.image

    def _side_picture(self, size: int) -> np.ndarray:
        """Draws the picture from the side, (rows, size, size, 3) uint8: x to the right, height upwards."""
        s, rows = self.state, np.arange(self.rows)
        canvas, flat = Canvas(self.rows, size, (0.0, 0.0), 1.0), np.tile(np.array([1, 0], np.float32), (self.rows, 1))

        def box(x, height, half, color):
            canvas.box(np.stack(np.broadcast_arrays(x, height), 1).astype(np.float32), flat, half, color)
        every = np.full(self.rows, 0.5)
        box(every, TABLE / 2, (0.5, TABLE / 2), COLOR_OF_ROLE["waypoint"])
        for at in CENTERS:
            box(np.full(self.rows, at[0]), TABLE + 0.02, (float(BIN[0]), 0.02), COLOR_OF_ROLE["start"])
        palette = np.array([COLORS[color] for color in self.colors])
        for block in np.argsort(-s["blocks"][:, :, 1], axis=1, kind="stable").T:  # far ones first
            height = np.where(block == s["held"], HAND - BLOCK, TABLE + BLOCK)
            box(s["blocks"][rows, block, 0], height, (BLOCK, BLOCK), palette[block])
        for side in (-1, 1):
            reach = np.where(s["closed"], 0.03, 0.055) * side
            box(s["hand"][:, 0] + reach, HAND + 0.02, (0.01, 0.06), (70, 74, 88))
        return canvas.image


_TEXTS = np.stack([TaskText(LENGTH).encode(text) for text in MISSIONS])


@dataclass(frozen=True)
class TabletopExpert(CountingActor):
    """Expert of `Tabletop`: takes the named block and drops it above the middle of the named bin.

    It reads the mission from simulator.state, as somebody does who understands the instruction.

    Args:
        noise: Standard deviation of its unsteadiness: as a fraction of the largest velocity, or for "pick_and_place" a
            tenth of that, as a fraction of half the table.
    """

    control: str
    noise: float = 0.1

    def act(self, obs, state):
        hand, closed = obs["observation.state"].split((2, 1), 1)
        rows = torch.arange(len(hand))
        blocks = obs["observation.environment_state"].reshape(len(hand), -1, 2)
        mission, held_block = obs["simulator.state"].round().long().T
        block, to = blocks[rows, mission // len(BINS)], torch.from_numpy(CENTERS)[mission % len(BINS)]
        if self.control == "pick_and_place":
            action = 2 * torch.cat([block, to], 1) - 1
            action = action + 0.1 * self.noise * normal(state["key"], state["count"], (4,), stream=2)
            return action, {**state, "count": state["count"] + 1}
        has = (held_block == mission // len(BINS))[:, None]
        ahead = torch.where(has, to, block) - hand
        gap = length(ahead)
        takes = ~has & (gap < 0.6 * GRASP) & (closed < 0.5)
        keeps = has & (gap > 0.02)
        speed = (ahead / SPEED).clamp(-1, 1)
        tremble = self.noise * gap.div(SPEED).clamp(0.05, 1) * normal(state["key"], state["count"], (2,), stream=2)
        action = torch.cat([torch.where(takes, 0.0, speed + tremble), torch.where(takes | keeps, 1.0, -1.0)], 1)
        return action.float(), {**state, "count": state["count"] + 1}

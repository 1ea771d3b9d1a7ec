"""Row 154: a small handle in a picture, and a detector that sees the block to which it belongs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from evidence.experiment import Experiment, ExpertDemonstrations
from evidence.measures import Rollouts
from understudy.core import Feature, normal, uniform
from understudy.data.codec import Normalizer
from understudy.data.episode import Episode
from understudy.envs.toy import distance, named_vector
from understudy.envs.toys.tabletop import BLOCK, COLORS, Tabletop
from understudy.execute.actor import CountingActor
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.tokens.behavior_transformer import BeT
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.nets.grid import PerToken
from understudy.nets.pixels import FocusCrop
from understudy.policy import PolicyConfig

PICTURE, FOCUS, OTHER = "observation.images.top", "observation.focus", "observation.other"
N_BLOCKS, REACH, RADIUS, DETECTOR_ERROR = 3, 0.07, 0.02, 0.01  # m, of the handles and of the detector
CROP = 0.3  # of the width of the table, which is 1 m


class HandleTable(Tabletop):
    """One grasp: the hand shall close within 0.02 m of the handle of the red block.

    A handle lies 0.07 m from the middle of its block, in a drawn direction. observation.focus and observation.other:
    where a detector sees the red block and the green one, with errors of 0.01 m. action (2): where to close. In all
    three, -1 and 1 are the edges of the table and of the picture.

    Best possible success: 1.0. Its expert attains it.
    """

    state_columns = ("simulator.state",)

    def __init__(self, rows: int = 1):
        super().__init__(rows, 1, blocks=N_BLOCKS)
        self.features = {PICTURE: Feature("uint8", (120, 120, 3), "image"), FOCUS: named_vector("x", "y"),
                         OTHER: named_vector("x", "y"), "simulator.state": Feature("float32", (16,)),
                         "action": named_vector("x", "y")}

    def initial_state(self, key):
        zero, blocks = torch.zeros_like(key), super().initial_state(key)["blocks"]
        angle = 2 * np.pi * uniform(key, zero, (N_BLOCKS,), stream=3).numpy()
        handles = blocks + REACH * np.stack([np.cos(angle), np.sin(angle)], 2).astype(np.float32)
        errors = DETECTOR_ERROR * normal(key, zero, (2, 2), stream=4).numpy()
        return {"places": np.concatenate([blocks, handles, blocks[:, :2] + errors.astype(np.float32)], 1)}

    def observe(self):
        places = self.state["places"]
        return {PICTURE: self._picture(120), FOCUS: 2 * places[:, -2] - 1, OTHER: 2 * places[:, -1] - 1,
                "simulator.state": places.reshape(self.rows, -1)}

    def state_from_columns(self, steps):
        return {"places": steps["simulator.state"].reshape(-1, 8, 2)}

    def advance(self, action):
        success = distance(self.state["places"][:, N_BLOCKS], (action + 1) / 2) < 0.02
        return success, success, ~success

    def expert(self):
        return HandleExpert()

    def map(self):
        return {**super().map(), "path": ("simulator.state", 0, 1)}

    def _draw(self, surface, rows):
        places = self.state["places"][rows]
        flat = np.array([[1, 0]] * len(places), np.float32)
        for i, color in enumerate(self.colors):
            surface.box(places[:, i], flat, (BLOCK, BLOCK), COLORS[color])
            surface.circle(places[:, N_BLOCKS + i], RADIUS, COLORS[color])


@dataclass(frozen=True)
class HandleExpert(CountingActor):
    """Closes at the handle of the red block."""

    def act(self, obs, state):
        return 2 * obs["simulator.state"][:, 2 * N_BLOCKS:2 * N_BLOCKS + 2] - 1, state


def grasp(cells: int, side: float = 1.0, at: str | None = FOCUS, picture: bool = True) -> Method:
    """Cloning by cells of the square that is seen. The offset from their middles counts in halves of their sides."""
    head = BeT(cells**2, gamma=0.0, offset_weight=(cells / side)**2, temperature=0.0, square=side)
    codec = Normalizer(target="identity", relative=at if side < 1 else None, unscaled=(at,) if at else ())
    trunk, encoder = PerToken(FeedForward(())), FocusCrop(at, side, cells)
    inputs = (PICTURE, at) if at else (PICTURE,)
    if not picture:
        trunk, encoder, inputs = FeedForward((64, 64)), ConcatEncoder(), (FOCUS,)
    return Method(PolicyConfig(head, trunk, encoder, codec, inputs=inputs), RecedingHorizon(),
                  BehaviorCloning(500, 32, OptimizerConfig(lr=3e-3)))


def is_near(episode: Episode) -> bool:
    """Whether the hand closed within 0.08 m of the handle."""
    handle = episode.steps["simulator.state"][0, 2 * N_BLOCKS:2 * N_BLOCKS + 2]
    return bool(distance(handle, (episode.steps["action"][0] + 1) / 2) < 0.08)


TABLE = Experiment(ExpertDemonstrations(f"{__name__}:HandleTable", 40),
                   measure=Rollouts((("within 0.08 m", is_near),)), first_seed=5400, n_seeds=3, episodes=300,
                   levels={"full, 40 x 40": 0.6}, arms={
    "crop": grasp(12, CROP),
    "full": grasp(12, at=None),
    "full + center": grasp(12),
    "full, 40 x 40": grasp(40, at=None),
    "center only": grasp(12, CROP, picture=False),
    "another block": grasp(12, CROP, OTHER)})

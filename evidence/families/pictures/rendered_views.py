"""Row 287: the features of a picture from the front must also draw the scene as it looks from above."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evidence.experiment import Experiment, ExpertDemonstrations
from evidence.measures import ROWS, flags, train_once
from understudy.core import Batch, Context, Feature, uniform
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset
from understudy.data.operations import Operation
from understudy.envs.raster import Canvas
from understudy.envs.toy import Toy, distance, named_vector
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import CountingActor, PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.heads.tokens.behavior_transformer import BeT, cell_centers
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.objectives.representation_objectives import NetworkObjective
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.base import Encoder, EncoderNet, record_intermediate
from understudy.nets.encoders import observed_column
from understudy.nets.feed_forward import FeedForward, feed_forward_layers
from understudy.nets.grid import PerToken
from understudy.policy import PolicyConfig

FRONT, TOP, TEACHER, ASKED = (f"observation.{name}" for name in ("images.front", "images.top", "teacher", "asked"))
PLACES, UNSEEN = "simulator.state", "success in unseen colors"
PATCH, CELLS, WIDTH = 3, 16, 24  # pixels along each side of a cell, cells along each side of a picture, and channels
SIZE = PATCH * CELLS
HALF, HEIGHT, LEAN = 0.065, (0.06, 0.2), 0.6  # m, of things; how much further up the front picture shows a height
COLORS = {"seen": ((205, 70, 62), (92, 160, 96), (70, 112, 190)),
          "unseen": ((226, 182, 70), (142, 98, 170), (60, 170, 180))}


class TwoShapes(Toy):
    """A hand takes one of two boxes or of two drums on a table of 1 m: the left or the right one of its shape.

    observation.asked (4): box, drum, left, right. observation.images.front: from the front and from above, so that a
    point looks as much further away as it is high, and near things hide those behind. For training alone,
    observation.images.top and observation.teacher: the scene from straight above, and which shape covers each of its
    pixels. action (2): where to take, -1 and 1 are the edges.

    Best possible success: 1.0. Its expert attains it.

    Args:
        colors: A key of `COLORS`, from which things have their colors, whatever their shapes.
    """

    state_columns = (PLACES,)
    metadata = {"env": "two-shapes", "version": 1, "fps": 10, "limit": 1, "optimum": 1.0,
                "success": "the hand is within 0.04 m of the named thing"}

    def __init__(self, rows: int = 1, colors: str = "seen"):
        self.palette = np.array(COLORS[colors], np.float32)
        self.features = {**dict.fromkeys((FRONT, TOP, TEACHER), Feature("uint8", (SIZE, SIZE, 3), "image")),
                         ASKED: named_vector("box", "drum", "left", "right"),
                         PLACES: Feature("float32", (18,)), "action": named_vector("x", "y")}
        super().__init__(rows, 1)

    def initial_state(self, key):
        def drawn(stream, *shape):
            return uniform(key, torch.zeros_like(key), shape, stream=stream).numpy()
        # a thing stands in one of 4 x 3 places, 0 and 1 are boxes, and those of a shape are in different columns
        columns = drawn(1, 2, 4).argsort(2)[:, :, :2].reshape(-1, 4)
        lines = np.take_along_axis(drawn(2, 4, 3).argsort(2), columns[:, :, None], 1)
        lines = np.concatenate([lines[:, :2, 0], lines[:, 2:, 1]], 1)
        places = np.stack([0.14 + 0.24 * columns, 0.14 + 0.25 * lines], 2) + 0.08 * (drawn(3, 4, 2) - 0.5)
        heights = HEIGHT[0] + (HEIGHT[1] - HEIGHT[0]) * drawn(4, 4, 1)
        things = np.concatenate([places, heights, drawn(5, 4, 1) * 3 // 1], 2).reshape(-1, 16)
        return {"places": np.concatenate([things, drawn(6, 2) * 2 // 1], 1).astype(np.float32)}

    def observe(self):
        places = self.state["places"]
        asked = places[:, 16:].astype(int)
        return {FRONT: self._picture(LEAN), TOP: self._picture(0.0), TEACHER: self._picture(0.0, True),
                ASKED: np.concatenate([np.eye(2)[asked[:, 0]], np.eye(2)[asked[:, 1]]], 1).astype(np.float32),
                PLACES: places}

    def state_from_columns(self, steps):
        return {"places": steps[PLACES]}

    def advance(self, action):
        success = distance(target(self.state["places"]), (action + 1) / 2) < 0.04
        return success, success, ~success

    def expert(self):
        return TwoShapesExpert()

    def map(self):
        return {"x": (0.0, 1.0), "y": (0.0, 1.0), "path": (PLACES, 0, 1), "shapes": []}

    def frame(self, row):
        return self._picture(LEAN)[row]

    def _picture(self, lean: float, shapes: bool = False) -> np.ndarray:
        """(rows, SIZE, SIZE, 3) uint8. With `shapes`, boxes are red and drums are blue, on black."""
        things, rows = self.state["places"][:, :16].reshape(-1, 4, 4), np.arange(self.rows)
        canvas, flat = Canvas(self.rows, SIZE, (0.0, 0.0), 1.0), np.array([[1, 0]] * self.rows, np.float32)
        if shapes:
            canvas.image[:] = 0
        for thing in np.argsort(-things[:, :, 1], axis=1, kind="stable").T:  # far ones first
            x, y, height, color = things[rows, thing].T
            for level in np.linspace(0, 1, 6):
                tint = self.palette[color.astype(int)] * (1.0 if level == 1 else 0.6)
                at = np.stack([x, y + lean * level * height], 1)
                is_drum = (thing > 1)[:, None]
                red, blue = ((255, 0, 0), (0, 0, 255)) if shapes else (tint, tint)
                canvas.box(np.where(is_drum, -9, at), flat, (HALF, HALF), red)
                canvas.circle(np.where(is_drum, at, -9), HALF, blue)
        return canvas.image


def target(places: np.ndarray) -> np.ndarray:
    """Where the named thing stands, (rows, 2)."""
    rows, things, shape = np.arange(len(places)), places[:, :16].reshape(-1, 4, 4), places[:, 16].astype(int)
    goes_right = things[rows, 2 * shape, 0] < things[rows, 2 * shape + 1, 0]
    return things[rows, 2 * shape + (goes_right == (places[:, 17] > 0.5)), :2]


@dataclass(frozen=True)
class TwoShapesExpert(CountingActor):
    """Takes the named thing."""

    def act(self, obs, state):
        return 2 * torch.from_numpy(target(obs[PLACES].numpy())) - 1, state


@dataclass(frozen=True)
class FrontView(Encoder):
    """Convolutions over the picture from the front, with a token for each cell: its features and its position, once for
    each number of what is asked for, times this number. The features are recorded as "cells"."""

    def build(self, features, n_obs_steps):
        return _FrontViewNet(features[FRONT].shape[2])


class _FrontViewNet(EncoderNet):
    at: Tensor
    tokens, width, token_obs_steps = CELLS**2, 4 * (WIDTH + 2), (0,) * CELLS**2

    def __init__(self, channels: int):
        super().__init__()
        first = nn.Conv2d(channels, WIDTH, PATCH + 2, PATCH, 1)
        self.layers = nn.ModuleList([first, *(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(3))])
        self.register_buffer("at", cell_centers(CELLS**2, 1.0)[:, 0], persistent=False)

    def forward(self, obs, rng=None):
        image, mask = observed_column(obs, FRONT)
        features = 1 - image[:, -1].permute(0, 3, 1, 2).float() / 255
        for layer in self.layers:
            features = layer(features).relu()
        cells = features.flatten(2).transpose(1, 2)
        record_intermediate("cells", cells)
        placed = torch.cat([cells, self.at.expand(len(cells), -1, -1)], 2)
        tokens = torch.einsum("bnd,ba->bnad", placed, obs[ASKED][:, -1]).flatten(2)
        return Context(tokens, mask[:, -1:].expand(-1, self.tokens))


@dataclass(frozen=True)
class DrawnViews(NetworkObjective):
    """The features of each cell must draw the pixels that pictures have there, which the policy does not read.

    The loss is the sum over pictures of the mean squared error of pixels from -1 to 1.
    """

    pictures: tuple[str, ...]
    weight: float = 50.0

    captures = ("cells",)

    @property
    def columns(self):
        return self.pictures

    def networks(self, policy):
        return {"draw": feed_forward_layers((WIDTH, 64, 3 * PATCH**2 * len(self.pictures)))}

    def targets(self, batch: Batch) -> Tensor:
        return torch.cat([batch.extra[name][:, 0] for name in self.pictures], 3)

    def loss(self, networks, policy, batch, rng, captured):
        drawn = networks.draw(captured["cells"])
        error = (drawn - pixels_of_cells(self.targets(batch)) / 127.5 + 1).square().mean((1, 2))
        return self.weight * len(self.pictures) * error


def pixels_of_cells(pictures: Tensor) -> Tensor:
    """The pixels of each cell, row by row from the top: (B, SIZE, SIZE, C) to (B, CELLS**2, C * PATCH**2)."""
    return F.unfold(pictures.permute(0, 3, 1, 2).float(), PATCH, stride=PATCH).transpose(1, 2)


@dataclass(frozen=True)
class OtherScenes(DrawnViews):
    """Draws the pictures of another episode of the batch."""

    def targets(self, batch):
        return super().targets(batch).roll(1, 0)


@dataclass(frozen=True)
class ViewsAsSamples(Operation):
    """Adds each episode once more, with the picture from above in place of that from the front."""

    def apply(self, data):
        return Dataset([*data, *(e.replace({FRONT: np.array(e.steps[TOP])}) for e in data)], data.metadata)


def cloning(*losses: DrawnViews, transforms: tuple[Operation, ...] = ()) -> Method:
    head = BeT(CELLS**2, gamma=0.0, offset_weight=CELLS**2, temperature=0.0, square=1.0)
    policy = PolicyConfig(head, PerToken(FeedForward((32,))), FrontView(),
                          Normalizer(target="identity", unscaled=(ASKED,)), inputs=(FRONT, ASKED))
    learner = BehaviorCloning(1000, 32, OptimizerConfig(lr=3e-3), auxiliary_losses=losses)
    return Method(policy, RecedingHorizon(), learner, transforms)


def taken(experiment, arm: Method, data: Dataset, seed: int, episodes: int, starts: int) -> dict:
    """"success" where things have the colors of the demonstrations, and in unseen ones."""
    policy, rows = train_once(experiment, arm, data, seed).policy, min(ROWS, episodes)
    actor = PolicyActor(FixedBatch(policy, rows), arm.executor)
    return {name: flags(rollout(actor, TwoShapes(rows, colors), episodes, seed=starts))["success"]
            for name, colors in (("success", "seen"), (UNSEEN, "unseen"))}


TABLE = Experiment(ExpertDemonstrations(f"{__name__}:TwoShapes", 100), first_seed=2875, n_seeds=10, episodes=500,
                   measure=taken, levels={"none": 0.35}, arms={
    "other view + teacher map": cloning(DrawnViews((TOP, TEACHER))),
    "none": cloning(),
    "other view": cloning(DrawnViews((TOP,))),
    "own view": cloning(DrawnViews((FRONT,))),
    "other view as samples": cloning(transforms=(ViewsAsSamples(),)),
    "view of another episode": cloning(OtherScenes((TOP, TEACHER)))})

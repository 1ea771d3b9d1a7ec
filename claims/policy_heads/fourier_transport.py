"""Row 351: does a transporter that turns with the image need fewer demonstrations to place precisely?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from claims.worlds.curation import cached_load
from understudy.claims.base import (
    Arm,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    GreaterThan,
    Measure,
    NegativeControl,
)
from understudy.core import Feature, keys, uniform
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.envs.raster import Canvas
from understudy.envs.toy import Toy, distance, named_vector
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor, PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.heads.energy.transport import COMPONENTS, Transport, TransportNet
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.feed_forward import feed_forward_layers
from understudy.nets.pixels import PixelEncoder
from understudy.nets.rotation import conv_net
from understudy.policy import PolicyConfig

IMAGE, POSES = "observation.images.top", "observation.environment_state"
BLOCK, SLOT = (70, 112, 190), (120, 175, 110)
NEAR, ANGLE = 0.1, 7.5  # half a table's width is 1; degrees
GRASP = 0.15
ROWS, SIZE, VIEWS = 100, 32, 50  # environments side by side; pixels; motions of the scene for each demonstration
CROP, N_ANGLES = 15, 36  # pixels; angles that are scored
STEPS, BATCH = 120, 8


class SlotTable(Toy):
    """A block with the shape of an L is put into a slot of the same shape, in one motion.

    observation.environment_state (6): position and angle of the block and of the slot; half of the table's width is 1,
    angles are in units of half a turn. observation.images.top: a picture. action (5): see
    `heads.energy.transport.Transport`. The block is taken if the hand picks within 0.15 of its middle. It is in the
    slot if its middle is within 0.1 of the slot's and the angle is right to 7.5 degrees.

    Best possible success: 1.0. `SlotTableExpert` attains it.

    Args:
        size: Width and height of the picture, in pixels.
    """

    state_columns = (POSES,)

    def __init__(self, rows: int = 1, size: int = SIZE):
        self.size = size
        pose = ("x", "y", "angle")
        self.features = {POSES: named_vector(*(f"{thing}.{p}" for thing in ("block", "slot") for p in pose)),
                         IMAGE: Feature("uint8", (size, size, 3), "image"), "action": named_vector(*COMPONENTS)}
        self.metadata = {"env": "slot_table", "version": 1, "fps": 1, "limit": 1, "optimum": 1.0,
                         "success": f"within {NEAR} of the slot and {ANGLE} degrees"}
        super().__init__(rows, 1)

    def initial_state(self, key):
        drawn = uniform(key, torch.zeros_like(key), (6,)).numpy()
        # Opposite each other, so that they never overlap, and anywhere in the middle of the table.
        heading, radius = 2 * np.pi * drawn[:, 0], 0.42 + 0.1 * drawn[:, 1:3]
        apart = np.stack([np.cos(heading), np.sin(heading)], 1)
        block, slot = radius[:, :1] * apart, -radius[:, 1:] * apart
        angles = 2 * drawn[:, 3:5] - 1
        return {"poses": np.concatenate([block, angles[:, :1], slot, angles[:, 1:]], 1).astype(np.float32)}

    def observe(self):
        return {POSES: self.state["poses"], IMAGE: render_poses(self.state["poses"], self.size)}

    def state_from_columns(self, steps):
        return {"poses": steps[POSES]}

    def advance(self, action):
        poses = self.state["poses"].copy()
        block, slot = poses[:, :3], poses[:, 3:]
        taken = distance(action[:, :2], block[:, :2]) < GRASP
        turned = rotate(block[:, :2] - action[:, :2], np.pi * action[:, 4]) + action[:, 2:4]
        moved = np.concatenate([turned, wrap_angle(block[:, 2:] + action[:, 4:])], 1)
        poses[:, :3] = np.where(taken[:, None], moved, block)
        self.state["poses"] = poses.astype(np.float32)
        error = 180 * np.abs(wrap_angle(poses[:, 2] - slot[:, 2]))
        success = taken & (distance(poses[:, :2], slot[:, :2]) < NEAR) & (error < ANGLE)
        return success, success, ~success

    def expert(self):
        return SlotTableExpert()

    def map(self):
        return {"x": (-1.0, 1.0), "y": (-1.0, 1.0), "path": (POSES, 0, 1), "shapes": []}

    def frame(self, row):
        return render_poses(self.state["poses"][row : row + 1], 256)[0]


def render_poses(poses: np.ndarray, size: int) -> np.ndarray:
    """Pictures of blocks and slots in these poses, (rows, size, size, 3) uint8."""
    canvas = Canvas(len(poses), size, (-1.0, -1.0), 2.0)
    canvas.image[:] = 255
    for pose, color, wide in ((poses[:, 3:], SLOT, 0.02), (poses[:, :3], BLOCK, 0.0)):
        angle = np.pi * pose[:, 2]
        heading = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
        across = np.stack([-heading[:, 1], heading[:, 0]], 1)
        corner, half = pose[:, :2] - 0.2 * heading - 0.1 * across, 0.06 + wide
        canvas.box((corner + 0.22 * heading).astype(np.float32), heading, (0.28 + wide, half), color)
        canvas.box((corner + 0.1 * across).astype(np.float32), across, (0.16 + wide, half), color)
    return canvas.image


def rotate(at: np.ndarray, angle: np.ndarray) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([cos * at[:, 0] - sin * at[:, 1], sin * at[:, 0] + cos * at[:, 1]], 1)


def wrap_angle(angle: np.ndarray) -> np.ndarray:
    """The same angle from -1 to 1, in units of half a turn."""
    return (angle + 1) % 2 - 1


@dataclass(frozen=True)
class SlotTableExpert(Actor):
    """Picks the middle of the block and places it exactly."""

    def start(self, obs, key):
        return {}

    def act(self, obs, state):
        return torch.from_numpy(expert_action(obs[POSES].numpy())), state


def expert_action(poses: np.ndarray) -> np.ndarray:
    turn = wrap_angle(poses[:, 5] - poses[:, 2])
    return np.concatenate([poses[:, :2], poses[:, 3:5], turn[:, None]], 1).astype(np.float32)


@dataclass(frozen=True)
class TurnedDemonstrations(DemonstrationSource):
    """Few demonstrations, each also shown from other sides: the whole scene is turned and moved.

    Args:
        views: Number of random motions of the whole scene, for each demonstration.
        size: Width and height of the picture.
    """

    episodes: int
    views: int = VIEWS
    size: int = SIZE

    @cached_load
    def load(self, seed):
        env = SlotTable(self.episodes, self.size)
        first = env.initial_state(keys(recording_seed(seed), range(self.episodes)))["poses"]
        poses = np.repeat(first, self.views, 0)
        drawn = uniform(keys(recording_seed(seed) + 1, range(len(poses))), torch.zeros(len(poses)).long(), (3,)).numpy()
        turn, shift = 2 * drawn[:, 0] - 1, 0.1 * (2 * drawn[:, 1:] - 1)
        for i in (0, 3):
            poses[:, i : i + 2] = rotate(poses[:, i : i + 2], np.pi * turn) + shift
            poses[:, i + 2] = wrap_angle(poses[:, i + 2] + turn)
        images, actions = render_poses(poses, self.size), expert_action(poses)
        return Dataset([Episode({IMAGE: image[None], "action": action[None]}, {"fps": 1.0})
                        for image, action in zip(images, actions, strict=True)])


@dataclass(frozen=True)
class HeatMap(Transport):
    """Convolutions score angle and pixel directly, from the scene and a code of the crop."""

    def build(self, trunk, coded_dim, spec):
        super().build(trunk, coded_dim, spec)
        return HeatMapNet(self, math.isqrt(spec.tokens), spec)


class HeatMapNet(TransportNet):
    """The networks of `HeatMap`."""

    def __init__(self, config, side, spec):
        super().__init__(config, side, spec)
        self.scene_net = conv_net(spec.width, (32, 32), 32, 7)
        self.crop_net = feed_forward_layers((spec.width * config.crop**2, 128, 32))
        self.last = conv_net(64, (64,), config.n_angles, 1)

    def place_logits(self, scene, pick):
        code = self.crop_net((self.crops(scene, pick) * self.inside).flatten(1))
        code = code[:, :, None, None].expand(-1, -1, self.side, self.side)
        return self.last(torch.cat([self.scene_net(scene), code], 1).relu()).flatten(2)


@dataclass(frozen=True)
class Unrotated(Transport):
    """`Transport` whose copies of the crop are all the crop itself."""

    def build(self, trunk, coded_dim, spec):
        super().build(trunk, coded_dim, spec)
        return UnrotatedNet(self, math.isqrt(spec.tokens), spec)


class UnrotatedNet(TransportNet):
    """The networks of `Unrotated`."""

    def __init__(self, config, side, spec):
        super().__init__(config, side, spec)
        self.rotations = self.rotations[:1].repeat(config.n_copies, 1, 1)


def success_and_turn_error(experiment, method: Method, data: Dataset, seed: int, episodes: int,
                           starts: int) -> dict[str, list[float]]:
    """Trains a method and lets it place blocks.

    Returns:
        One value per scene: "success", and "turn", the error of the angle as a fraction of half a turn.
    """
    policy = fit_method(method, data, seed).policy
    rows = min(ROWS, episodes)
    env = SlotTable(rows, data.features()[IMAGE].shape[0])
    rollouts = rollout(PolicyActor(FixedBatch(policy, rows), method.executor), env, episodes, seed=starts)
    right = expert_action(np.concatenate([e.steps[POSES][:1] for e in rollouts]))
    turn = np.concatenate([e.steps["action"][:, 4] for e in rollouts]) - right[:, 4]
    return {"success": [float(e.metadata["success"]) for e in rollouts], "turn": np.abs(wrap_angle(turn)).tolist()}


def transport_arm(name: str, head: Transport) -> Arm:
    """The same updates, batches and learning rate for every arm."""
    policy = PolicyConfig(head, encoder=PixelEncoder(), codec=Normalizer(target="identity"), window=Window(1, 1),
                          inputs=(IMAGE,))
    return Arm(name, (Method(policy, RecedingHorizon(1), BehaviorCloning(STEPS, BATCH, OptimizerConfig(lr=4e-3))),))


def unrotated(experiment: Experiment) -> Experiment:
    """All copies of the crop are the crop itself, for the Fourier transporter."""
    return experiment.replace_arms(transport_arm("fourier", Unrotated(CROP, n_angles=N_ANGLES)))


def with_demonstrations(episodes: int, n_seeds: int, *arms: Arm) -> Experiment:
    """The experiment with so many demonstrations and training seeds."""
    seeds = tuple(range(550, 550 + n_seeds))
    return Experiment(TurnedDemonstrations(episodes), "tabletop", arms, success_and_turn_error, seeds=seeds,
                      measures=(("turn", Measure("bounded")),), starts_seed=550,
                      sanity=(("transporter", "success", 0.3),))


FOURIER = transport_arm("fourier", Transport(CROP, n_angles=N_ANGLES))
TRANSPORTER = transport_arm("transporter", Transport(CROP, N_ANGLES, None, N_ANGLES, False, hidden=(16, 16)))
HEAT_MAP = transport_arm("heat map", HeatMap(CROP, N_ANGLES, None, N_ANGLES, False, hidden=(16, 16)))
BETTER = GreaterThan("success", "fourier", "transporter")
ONE, FIVE, TEN = (with_demonstrations(n, seeds, FOURIER, TRANSPORTER) for n, seeds in ((1, 6), (5, 6), (10, 5)))

CLAIM = Claim(
    name="fourier-transport",
    rows=("351",),
    parts=(
        ClaimPart("1 demonstration", ONE, BETTER),
        ClaimPart("5 demonstrations", FIVE, BETTER),
        ClaimPart("10 demonstrations", TEN, GreaterThan("success", "fourier", "transporter", -0.1), is_decisive=False),
        ClaimPart("without a crop that is moved", with_demonstrations(1, 5, TRANSPORTER, HEAT_MAP),
                  GreaterThan("success", "transporter", "heat map", 0.3), is_decisive=False),
    ),
    negative_control=NegativeControl(unrotated, "1 demonstration"),
)

"""Row 175: executing a sequence of actions helps where demonstrations pause, and hurts where the goal changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

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
from understudy.claims.measures import Rollouts
from understudy.core import normal, uniform
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.envs.raster import COLOR_OF_ROLE, Canvas
from understudy.envs.toy import Toy, distance, named_vector
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import CountingActor
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.denoising.diffusion import Diffusion
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.base import Trunk
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP
from understudy.nets.unet import UNet
from understudy.policy import Policy, PolicyConfig

ROWS = 50  # environments side by side; results do not depend on it
BINS = np.array([[0.2, 0.9], [0.5, 0.9], [0.8, 0.9]], np.float32)  # m, the centers
BIN = 0.1  # m, half of a bin's side
REACH = 0.1  # m: as near as this the hand takes the block
SLIP = 0.04  # m: how far the hand may move while it closes
NEVER = 2.0  # m: a depth that the table does not have
SPEED = 0.08  # m: how far the hand goes in one step at most


class Carry(Toy):
    """A hand takes a block and lets it go over a bin. It must close for some steps before it holds the block.

    observation.state (7): position of the hand, 1 if it is closed, and the positions of block and bin. How long it has
    been closed is not observed.

    simulator.state (4): for how many steps it has been closed around the block, the number of the bin and of the one
    after a change, and the depth of the table where it changes. action (3): velocity of the hand, where 1 is 0.08 m in
    a step of 0.1 s, and above 0 to close it.

    A hand that closes within 0.1 m of the block brings it to its middle, and holds it after `grip` steps. An episode
    ends with reward 1 if the block is let go over the bin. It ends with reward -1 if the block is let go elsewhere, or
    if the hand moves away by 0.04 m before it holds the block.

    Best possible success: 1.0. `Carrier(noise=0)` attains it.

    Args:
        limit: Number of steps of an episode.
        grip: Number of steps for which the hand must be closed around the block until it holds it.
        changes: Probability that the bin changes, once an episode, while the block is carried. The depth of the table
            where that happens is random.
        absolute: The first two numbers of an action are the position where the hand goes. -1 and 1 are the edges of
            the table.
    """

    state_columns = ("observation.state", "simulator.state")

    def __init__(self, rows: int = 1, limit: int = 40, grip: int = 1, changes: float = 0.0, absolute: bool = False):
        self.grip, self.changes, self.absolute = grip, changes, absolute
        self.features = {"observation.state": named_vector("x", "y", "closed", "block.x", "block.y", "bin.x", "bin.y"),
                         "simulator.state": named_vector("closing", "bin", "next bin", "depth"),
                         "action": named_vector("x", "y", "grip")}
        self.metadata = {"env": "carry", "version": 1, "fps": 10, "limit": limit, "optimum": 1.0,
                         "success": "the block lies in the bin"}
        super().__init__(rows, limit)

    def initial_state(self, key):
        drawn = uniform(key, torch.zeros_like(key), (8,)).numpy().astype(np.float32)
        named = (3 * drawn[:, 4]).astype(np.int64)
        block = np.array([0.2, 0.1], np.float32) + np.array([0.6, 0.4], np.float32) * drawn[:, 2:4]
        return {"hand": 0.2 + 0.6 * drawn[:, :2], "block": block,
                "closed": np.zeros(len(key), bool), "closing": np.zeros(len(key), np.int64), "bin": named,
                "next": (named + 1 + (drawn[:, 5] > 0.5)) % 3,
                "depth": np.where(drawn[:, 7] < self.changes, 0.6 + 0.25 * drawn[:, 6], np.float32(NEVER))}

    def observe(self):
        s = self.state
        visible = np.concatenate([s["hand"], s["closed"][:, None], s["block"], BINS[s["bin"]]], 1)
        hidden = np.stack([s["closing"], s["bin"], s["next"], s["depth"]], 1)
        return {"observation.state": visible.astype(np.float32), "simulator.state": hidden.astype(np.float32)}

    def state_from_columns(self, steps):
        visible, hidden = steps["observation.state"], steps["simulator.state"]
        return {"hand": visible[:, :2], "closed": visible[:, 2] > 0.5, "block": visible[:, 3:5],
                **{k: np.rint(hidden[:, i]).astype(np.int64) for i, k in enumerate(("closing", "bin", "next"))},
                "depth": hidden[:, 3]}

    def advance(self, action):
        s = self.state
        way = ((action[:, :2] + 1) / 2 - s["hand"]) / SPEED if self.absolute else action[:, :2]
        s["hand"] = np.clip(s["hand"] + np.float32(SPEED) * np.clip(way, -1, 1), 0, 1)
        s["closed"] = action[:, 2] > 0
        grasped, touched = s["closing"] >= self.grip, s["closing"] > 0
        in_reach = grasped | (distance(s["hand"], s["block"]) < np.where(touched, SLIP, REACH))
        dropped = grasped & ~s["closed"]
        s["closing"] = np.where(s["closed"] & in_reach, s["closing"] + 1, 0)
        carried = grasped | (s["closing"] == 1)  # fingers that close bring the block to their middle
        s["block"] = np.where(carried[:, None], s["hand"], s["block"])
        now = grasped & (s["block"][:, 1] > s["depth"])
        s["bin"], s["depth"] = np.where(now, s["next"], s["bin"]), np.where(now, np.float32(NEVER), s["depth"])
        success = dropped & (np.abs(s["block"] - BINS[s["bin"]]) < BIN).all(1)
        failure = dropped & ~success | touched & ~in_reach
        return success.astype(np.float32) - failure, success, failure

    def expert(self):
        return Carrier(self.grip, self.absolute)

    def map(self):
        bins = [{"kind": "box", "at": tuple(map(float, at)), "half": (BIN, BIN), "role": "goal"} for at in BINS]
        return {"x": (0.0, 1.0), "y": (0.0, 1.0), "path": ("observation.state", 0, 1), "shapes": bins}

    def frame(self, row):
        canvas, flat, s = Canvas(1, 256, (0.0, 0.0), 1.0), np.array([[1, 0]], np.float32), self.state
        canvas.box(BINS[s["bin"][row]][None], flat, (BIN, BIN), COLOR_OF_ROLE["goal"])
        canvas.box(s["block"][row:row + 1], flat, (0.04, 0.04), COLOR_OF_ROLE["block"])
        canvas.circle(s["hand"][row:row + 1], 0.02, COLOR_OF_ROLE["agent"])
        return canvas.image[0]


@dataclass(frozen=True)
class Carrier(CountingActor):
    """Takes the block, waits until it is held, and lets it go over the middle of the bin.

    Args:
        grip: That of the environment.
        absolute: That of the environment.
        noise: Standard deviation of its unsteadiness, as a fraction of the largest velocity.
    """

    grip: int = 1
    absolute: bool = False
    noise: float = 0.1

    def act(self, obs, state):
        hand, closed, block, goal = obs["observation.state"].split((2, 1, 2, 2), 1)
        closing = obs["simulator.state"][:, :1]
        has = closing >= self.grip
        way = (torch.where(has, goal, block) - hand) / SPEED
        gap = (way * way).sum(1, keepdim=True).sqrt()
        stays = ~has & ((closing > 0) | (gap * SPEED < SLIP))
        opens = has & (gap * SPEED < 0.02)
        tremble = self.noise * gap.clamp(0.05, 1) * normal(state["key"], state["count"], (2,), stream=2)
        way = torch.where(stays, 0.0, way.clamp(-1, 1) + tremble).clamp(-1, 1)
        way = 2 * (hand + SPEED * way) - 1 if self.absolute else way
        action = torch.cat([way, torch.where(stays | has & ~opens, 1.0, -1.0)], 1)
        return action.float(), {**state, "count": state["count"] + 1}


@dataclass(frozen=True)
class CarryDemonstrations(DemonstrationSource):
    """Episodes of the expert in "carry"."""

    episodes: int
    env_options: tuple[tuple[str, Any], ...] = ()

    @cached_load
    def load(self, seed):
        env = Carry(ROWS, **dict(self.env_options))
        return rollout(env.expert(), env, self.episodes, recording_seed(seed))


def n_parameters(policy: Policy, rollouts: Dataset) -> int:
    return sum(p.numel() for p in policy.net.parameters())


def diffusion_policy_arm(name: str, n_action_steps: int = 8, n_obs_steps: int = 2, horizon: int = 16,
                         trunk: Trunk | None = None, learner: BehaviorCloning | None = None) -> Arm:
    """Diffusion Policy with the options of the paper: two observations, plans of 16 steps, of which 8 are executed."""
    policy = PolicyConfig(Diffusion(prediction="sample"), trunk or MLP(128, 1), ConcatEncoder(),
                          window=Window(n_obs_steps, horizon), inputs=("observation.state",))
    return Arm(name, (Method(policy, RecedingHorizon(n_action_steps), learner or LEARNER),))


def unet_arm(name: str, condition: Literal["film", "input"]) -> Arm:
    trunk = UNet((20, 40), kernel=3, groups=4, time_width=16, condition=condition)
    return diffusion_policy_arm(name, trunk=trunk, learner=SHORT)


def experiment_of(seed: int, arms: tuple[Arm, ...], *env_options: tuple[str, Any]) -> Experiment:
    """An experiment with demonstrations of the same environment."""
    return Experiment(CarryDemonstrations(200, env_options), f"{__name__}:Carry", arms,
                      Rollouts(per_run=(("parameters", n_parameters),)),
                      seeds=tuple(range(seed, seed + 5)), env_options=env_options, episodes=200,
                      measures=(("parameters", Measure("real")),), starts_seed=seed)


def with_fixed_bin(experiment: Experiment) -> Experiment:
    """The bin never changes, in the demonstrations and afterwards."""
    return replace(experiment, source=replace(experiment.source, env_options=()), env_options=())


OPTIMIZER = OptimizerConfig(lr=2e-3, warmup_steps=50)
LEARNER, SHORT = BehaviorCloning(2000, 128, OPTIMIZER), BehaviorCloning(800, 64, OPTIMIZER)
SLOW, ABSOLUTE = ("grip", 4), ("absolute", True)
EIGHT, ONE = diffusion_policy_arm("execute 8"), diffusion_policy_arm("execute 1", 1)
BLIND = diffusion_policy_arm("observe 1", n_obs_steps=1)
PAUSES = replace(experiment_of(1750, (EIGHT, ONE), SLOW), sanity=(("execute 8", "success", 0.5),))
CHANGES = replace(experiment_of(1760, (EIGHT, ONE), ("changes", 0.5)),
                  sanity=(("execute 8", "success", 0.5), ("execute 1", "success", 0.8)))
NEITHER = replace(with_fixed_bin(CHANGES),
                  sanity=(("execute 8", "success", 0.8), ("execute 1", "success", 0.8)))
HISTORY = experiment_of(1750, (ONE, diffusion_policy_arm("execute 1, observe 6", 1, 6)), SLOW)
HORIZON = experiment_of(1750, (EIGHT, diffusion_policy_arm("plan 8", horizon=8)), SLOW)
DELTA = experiment_of(1750, (EIGHT, BLIND), SLOW)
POSITIONS = experiment_of(1750, (EIGHT, BLIND), SLOW, ABSOLUTE)
NETWORKS = experiment_of(1750, (unet_arm("U-Net, FiLM", "film"), unet_arm("U-Net, input", "input"),
                                diffusion_policy_arm("MLP", learner=SHORT)), SLOW)

CLAIM = Claim(
    name="diffusion-components",
    rows=("175",),
    parts=(
        ClaimPart("pauses", PAUSES, GreaterThan("success", "execute 8", "execute 1", 0.1)),
        ClaimPart("changing bin", CHANGES, GreaterThan("success", "execute 1", "execute 8", 0.1)),
        ClaimPart("neither", NEITHER, GreaterThan("success", "execute 1", "execute 8", -0.1)),
        ClaimPart("history in place of sequences", HISTORY,
                  GreaterThan("success", "execute 1, observe 6", "execute 1", 0.1), is_decisive=False),
        ClaimPart("history, velocities", DELTA, GreaterThan("success", "execute 8", "observe 1", 0.05),
                  is_decisive=False),
        ClaimPart("history, positions", POSITIONS, GreaterThan("success", "execute 8", "observe 1", 0.05),
                  is_decisive=False),
        ClaimPart("receding horizon", HORIZON, GreaterThan("success", "execute 8", "plan 8", 0.05),
                  is_decisive=False),
        ClaimPart("U-Net", NETWORKS, GreaterThan("success", "U-Net, FiLM", "MLP", 0.1), is_decisive=False),
        ClaimPart("FiLM", NETWORKS, GreaterThan("success", "U-Net, FiLM", "U-Net, input", 0.1), is_decisive=False),
    ),
    negative_control=NegativeControl(with_fixed_bin, "changing bin"),
)

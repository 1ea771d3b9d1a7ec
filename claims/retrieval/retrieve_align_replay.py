"""Row 316: does a robot need fewer demonstrations if it chooses one, goes where it began, and repeats its motion?"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from understudy.checkpoint import FromStage
from understudy.claims.base import (
    AllOf,
    Arm,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    GreaterThan,
    NegativeControl,
)
from understudy.claims.measures import deployed_actor
from understudy.core import Feature, normal, uniform
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset
from understudy.data.mixture import mix
from understudy.data.operations import Crop, Filter
from understudy.envs.base import Env
from understudy.envs.episode_wrappers import DemoStateReset
from understudy.envs.observation_wrappers import ObservationTransform, RandomFeatureObs
from understudy.envs.toys.peg_insertion import OUTLINES, STEP, PegInsertion
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.following import policy_with_memory
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.retrieval.retrieve_align_replay import AlignedReplay, PlanarFrame, retrieve_align_replay, rotate
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.policy import PolicyConfig

PEG, HOLE = "observation.state", "observation.environment_state"
VIEW, OUTLINE = "observation.view", "observation.outline"
TOLERANCE = 0.002  # m, of the hole
LAST_STEPS = 6  # of a demonstration, which are repeated
PLAY, PLAY_STEPS = 100, 60  # episodes without a demonstrator
STEPS = (500, 2000)  # numbers of updates to choose from
ROWS = 100  # environments side by side
EFFECTOR, OBJECT = PlanarFrame(PEG, ()), PlanarFrame(HOLE, (PEG,))


class WristView(ObservationTransform):
    """Adds two columns: what a camera at the peg sees, and the outline alone.

    The view is the pose of the hole relative to the peg, and the outline. Each component has a standard deviation of
    about 1.
    """

    def transform_features(self, features):
        return {**features, VIEW: Feature("float32", (12,)), OUTLINE: Feature("float32", (8,))}

    def transform_obs(self, obs):
        hole = PlanarFrame(PEG, (HOLE,)).transform_obs(obs, {})[0][HOLE]
        angle, outline = hole[:, 2:3], (hole[:, 3:] - 0.08) / 0.014
        turn = math.sqrt(2) * torch.cat([angle.cos(), angle.sin()], 1)
        return {**obs, VIEW: torch.cat([hole[:, :2] / 0.3, turn, outline], 1), OUTLINE: outline}


def with_camera(env: Env) -> Env:
    """The environment with a column of 64 features of the view, which stand in for those of a picture."""
    return RandomFeatureObs(WristView(env), 64, VIEW)


@dataclass(frozen=True)
class RandomPoses(Actor):
    """Moves to random poses around the first one, a new one every 12 steps."""

    def start(self, obs, key):
        return {"key": key, "count": torch.zeros_like(key), "first": obs[PEG].clone()}

    def act(self, obs, state):
        place = 2 * uniform(state["key"], state["count"] // 12, (3,), stream=5) - 1
        target = state["first"] + place * torch.tensor([0.7, 0.7, 1.0])
        motion = (target - obs[PEG]) / torch.from_numpy(STEP)
        motion = motion / motion.abs().amax(1, keepdim=True).clamp(min=1)
        motion = motion + 0.1 * normal(state["key"], state["count"], (3,), stream=6)
        return motion.float(), {**state, "count": state["count"] + 1}


@dataclass(frozen=True)
class DemonstrationsAndPlay(DemonstrationSource):
    """Demonstrations of every outline, and play: episodes that begin where the repeated part of one begins.

    They are a mixture: "task" has one demonstration of each outline, "few" two more, "many" seven more, and "prior"
    the play.

    Args:
        play: Number of episodes of play.
    """

    play: int

    def load(self, seed):
        task, few, many = [], [], []
        for outline in range(OUTLINES):
            env = PegInsertion(14, tolerance=TOLERANCE, outlines=(outline,))
            rollouts = rollout(env.expert(), with_camera(env), 14, recording_seed(seed), first=10_000 * outline)
            demonstrations = list(rollouts.filter(lambda e: e.metadata["success"]))
            task, few, many = task + demonstrations[:1], few + demonstrations[1:3], many + demonstrations[3:10]
        starts = Crop(-LAST_STEPS, 1 - LAST_STEPS).apply(Dataset(task))
        env = DemoStateReset(PegInsertion(self.play, PLAY_STEPS, TOLERANCE), starts)
        play = rollout(RandomPoses(), with_camera(env), self.play, recording_seed(seed), first=100_000)
        parts = {"task": Dataset(task), "few": Dataset(few), "many": Dataset(many), "prior": play}
        return mix(**{name: (part, 1.0) for name, part in parts.items()})[0]


@dataclass(frozen=True)
class RandomRetrieval(AlignedReplay):
    """Chooses a demonstration at random."""

    def retrieve(self, obs, key):
        n = len(cast(Any, self.retriever).net.keys)
        return (uniform(key, torch.zeros_like(key), (1,), stream=7)[:, 0] * n).long().clamp(max=n - 1)


@dataclass(frozen=True)
class WorldFrameReplay(AlignedReplay):
    """Repeats the velocities as they were in the world, and not as the effector made them."""

    def replay(self, planner, obs, row):
        then = cast(Any, policy_with_memory(planner, "WorldFrameReplay").net).keys[row][:, -1]
        return rotate(super().replay(planner, obs, row), then - obs[PEG][:, -1, 2])


def success(experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int) -> dict[str, list[float]]:
    """Trains a method and rolls it out.

    Returns:
        "success", 0 or 1 per start.
    """
    actor = deployed_actor(experiment, method, data, seed, ROWS)
    env = with_camera(PegInsertion(ROWS, **dict(experiment.env_options)))
    return {"success": [float(e.metadata["success"]) for e in rollout(actor, env, episodes, seed=starts)]}


def replay(executor: type[AlignedReplay] = AlignedReplay, is_aligned: bool = True) -> tuple[Method, ...]:
    """The method with one demonstration of each outline, for each number of updates of the aligner."""
    method = retrieve_align_replay(
        OUTLINE, VIEW, PEG, tuple(float(x) for x in STEP), tolerance=0.02, first=-LAST_STEPS, frame=PEG)
    # The memory also has the pose of the peg, which tells in what direction of the world a velocity was.
    memory = replace(method.policy, inputs=(*method.policy.inputs, PEG), codec=Normalizer(unscaled=(PEG,)))
    aligner = FromStage("alignment") if is_aligned else None
    run = executor(FromStage("retrieval"), aligner, tolerance=0.02)
    retrieval, alignment = method.stages
    stages = [(retrieval, replace(alignment, method=replace(alignment.method, learner=learner(n)))) for n in STEPS]
    return tuple(replace(method, policy=memory, executor=run, stages=s if is_aligned else s[:1]) for s in stages)


def learner(steps: int) -> BehaviorCloning:
    return BehaviorCloning(steps, 256, OptimizerConfig(lr=3e-3))


def cloning(parts: tuple[str, ...], inputs: tuple[str, ...], frame: PlanarFrame | None) -> tuple[Method, ...]:
    """Cloning of all steps of some demonstrations, with the aligner's network, for each number of updates."""
    policy = PolicyConfig(Regression(), FeedForward((128, 128)), ConcatEncoder(), inputs=inputs)
    kept = (Filter("dataset", equals=parts),)
    return tuple(Method(policy, RecedingHorizon(), learner(steps), kept, wrapper=frame) for steps in STEPS)


def in_world_frame(experiment: Experiment) -> Experiment:
    return experiment.replace_arms(Arm("replay", replay(WorldFrameReplay)))


ONE, THREE, TEN = ("task",), ("task", "few"), ("task", "few", "many")
REPLAY = Arm("replay", replay())
TEN_IN_PEG_FRAME = Arm("cloning 10", cloning(TEN, (VIEW, OUTLINE), EFFECTOR))
PEGS = Experiment(
    DemonstrationsAndPlay(PLAY),
    "peg_insertion",
    (
        REPLAY,
        Arm("random retrieval", replay(RandomRetrieval)),
        Arm("no alignment", replay(is_aligned=False)),
        Arm("cloning 1", cloning(ONE, (VIEW, OUTLINE), EFFECTOR)),
        Arm("object frame 1", cloning(ONE, (PEG, OUTLINE), OBJECT)),
        TEN_IN_PEG_FRAME,
    ),
    success,
    seeds=tuple(range(316, 336)),
    tuning_seeds=(900, 901, 902),
    env_options=(("tolerance", TOLERANCE),),
    episodes=200,
    starts_seed=316,
    looks=((5, 0.01), (10, 0.015), (20, 0.025)),
    sanity=(("cloning 10", "success", 0.9),),
)
MORE = replace(
    PEGS,
    arms=(
        REPLAY,
        Arm("cloning 3", cloning(THREE, (VIEW, OUTLINE), EFFECTOR)),
        TEN_IN_PEG_FRAME,
        Arm("object frame 3", cloning(THREE, (PEG, OUTLINE), OBJECT)),
        Arm("world frame 10", cloning(TEN, (PEG, HOLE), None)),
    ),
    seeds=PEGS.seeds[:5],
    looks=(),
)
OVER_CLONING = GreaterThan("success", "replay", "cloning 1")
OVER_FRAME = GreaterThan("success", "replay", "object frame 1")
OVER_RANDOM = GreaterThan("success", "replay", "random retrieval")
OVER_UNALIGNED = GreaterThan("success", "replay", "no alignment")

CLAIM = Claim(
    name="retrieve-align-replay",
    rows=("316",),
    parts=(
        ClaimPart("one demonstration", PEGS, AllOf((OVER_CLONING, OVER_FRAME, OVER_RANDOM, OVER_UNALIGNED))),
        ClaimPart("against three", MORE, GreaterThan("success", "replay", "cloning 3"), is_decisive=False),
        ClaimPart("against ten", MORE, GreaterThan("success", "replay", "cloning 10"), is_decisive=False),
        ClaimPart("against ten in the world's frame", MORE, GreaterThan("success", "replay", "world frame 10"),
                  is_decisive=False),
    ),
    negative_control=NegativeControl(in_world_frame, "one demonstration", removes=(OVER_CLONING, OVER_FRAME)),
)

"""Row 211: an arm draws what demonstrations without actions show."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from evidence.experiment import TRUSTED, DemonstrationSource, Experiment
from understudy.core import uniform
from understudy.data.column_changes import Progress
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import DATASET_NAME, expert_episodes
from understudy.data.operations import Filter
from understudy.data.shown_demonstration import ShowDemonstration
from understudy.data.window import TERMINATED
from understudy.envs import make
from understudy.envs.toys.planar_arms import PlanarArms
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.recording import UniformRandomActor
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import CountingActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.demonstrated import NUMBER, DemonstratedActor
from understudy.heads.likelihood.regression import Regression
from understudy.heads.likelihood.squashed_gaussian import SquashedGaussian
from understudy.improve.collection import CollectionRounds, GaussianExploration
from understudy.improve.updates import PerNewStep, PerRound
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.cloning.cloning_from_observation import BehaviorCloningFromObservation
from understudy.learn.critics.td3 import TD3
from understudy.learn.fit import LearnerConfig
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.targets import REWARD
from understudy.methods.observation_only.iterative_inversion import SteeredCollector, own_steps
from understudy.nets.feed_forward import FeedForward
from understudy.policy import PolicyConfig

STATE, ROWS = "observation.state", 25
LENGTH, N_KNOTS = 25, 3  # steps of a drawing, and velocities that are drawn for it
NEAR = 0.1  # m: a drawing that is missed by less than this, on average over its steps, is a success
N_ROUNDS, PER_ROUND, FIRST = 20, 100, 500  # rounds of 20 rollouts; updates after each, and before them
SIZES = (FIRST + N_ROUNDS * PER_ROUND, 128, OptimizerConfig(lr=1e-3, lr_schedule="constant"))
SHOW, PROGRESS = ShowDemonstration((STATE,), 4, own=True), Progress(length=LENGTH)
POLICY = PolicyConfig(Regression(), FeedForward((64, 64)), inputs=(STATE, *SHOW.into, PROGRESS.into))
MIRROR = np.array([-1, -1, 1, -1], np.float32)  # of both angles, and of x and y of the tip


class DrawingArm(PlanarArms):
    """An arm of two links that begins in the same pose. Its target is out of reach, so that no episode ends early."""

    def __init__(self, rows: int = 1):
        super().__init__(rows, LENGTH, arm="two")

    def initial_state(self, key):
        joints, target = np.array([[0.5, 1.0]], np.float32), np.array([[5.0, 5.0]], np.float32)
        return {"joints": np.repeat(joints, len(key), 0), "target": np.repeat(target, len(key), 0)}


@dataclass(frozen=True)
class Scribbler(CountingActor):
    """Turns the joints at drawn velocities, between which it changes them linearly."""

    def act(self, obs, state):
        knots = 2 * uniform(state["key"], torch.zeros_like(state["key"]), (N_KNOTS, 2), stream=3).float() - 1
        at = state["count"].float() / LENGTH * (N_KNOTS - 1)
        segment, rows = at.long().clamp(max=N_KNOTS - 2), torch.arange(len(at))
        later = (at - segment)[:, None]
        velocity = knots[rows, segment] * (1 - later) + knots[rows, segment + 1] * later
        return velocity, {**state, "count": state["count"] + 1}


@dataclass(frozen=True)
class Drawings(DemonstrationSource):
    """Drawings, the part "task", and episodes of random actions, the part "prior"."""

    env: str = f"{__name__}:DrawingArm"
    episodes: int = 100
    n_practice: int = 20

    def load(self, seed, first=0):
        env = make(self.env, ROWS, TRUSTED)
        drawings, practice = (rollout(actor, env, n, recording_seed(seed), first=number) for actor, n, number in (
            (Scribbler(), self.episodes, first), (UniformRandomActor(env), self.n_practice, 200_000)))
        return Dataset([replace(e, metadata={**e.metadata, DATASET_NAME: part})
                        for part, data in (("task", drawings), ("prior", practice)) for e in data])


@dataclass(frozen=True)
class TrackingReward:
    """A column change: an episode with the drawing that its policy was shown, and minus the distance to it as reward.

    Random episodes get one drawing after the other.
    """

    drawings: Dataset

    def __call__(self, episode):
        number = int(episode.steps[NUMBER][0, 0]) if NUMBER in episode.steps else episode.metadata["number"]
        drawing = self.drawings[number % len(self.drawings)]
        frames = np.repeat(SHOW.frames(drawing)[:, None], len(episode) + 1, 1)
        reward = -distances(drawing, episode)[1:].astype(np.float32)
        return episode.replace({**dict(zip(SHOW.into, frames, strict=True)), REWARD: reward,
                                TERMINATED: np.arange(len(episode)) == len(episode) - 1})


@dataclass(frozen=True)
class Drawn:
    """A method that learns to draw.

    Args:
        n_random: Number of further episodes of random actions.
        mirrored: The drawings are shown in a mirror while it practices.
        rewarded: It learns from rewards for following the drawings.
    """

    method: Method
    n_random: int = 0
    mirrored: bool = False
    rewarded: bool = False


def practicing(n_rounds: int = N_ROUNDS, steering: float = 1.0, learner: LearnerConfig | None = None) -> Method:
    """Iterative inversion, or with a learner that reads demonstrations BCO."""
    collector = SteeredCollector(20, GaussianExploration(0.5), show=SHOW, steering=steering)
    rounds = CollectionRounds(n_rounds, collector, initial_updates=FIRST, updates=PerRound(PER_ROUND),
                              sampling_weights=None if learner else own_steps)
    return Method(POLICY, RecedingHorizon(), learner or BehaviorCloning(*SIZES), (SHOW, PROGRESS), collection=rounds)


def cloning(part: str) -> Method:
    return Method(POLICY, RecedingHorizon(), BehaviorCloning(*SIZES),
                  (Filter(DATASET_NAME, equals=(part,)), SHOW, PROGRESS))


def tracking() -> Method:
    """TD3, with an update for each step of as many episodes."""
    collector = SteeredCollector(20, GaussianExploration(0.2), show=SHOW)
    optimizer = OptimizerConfig(lr=1e-3, lr_schedule="constant", weight_decay=0.0, grad_clip_norm=None)
    learner = TD3(batch_size=SIZES[1], optimizer=optimizer, discount=0.9)
    policy = replace(POLICY, head=SquashedGaussian("free"), trunk=FeedForward((256, 256)))
    rounds = CollectionRounds(N_ROUNDS, collector, updates=PerNewStep(1.0), sampling_weights=own_steps)
    return Method(policy, RecedingHorizon(), learner, (PROGRESS,), collection=rounds)


def distances(demonstration: Episode, drawn: Episode) -> np.ndarray:
    """Between the tip and where it was at that step of a demonstration, m, (T + 1,)."""
    tips = [e.steps[STATE][:, 2:].astype(float) for e in (demonstration, drawn)]
    return np.sqrt(np.square(tips[0] - tips[1]).sum(1))


def drawn_again(experiment, option, data, seed, episodes, starts):
    """Trains a policy, shows it new drawings, and measures by how much it misses them."""
    if option.n_random:
        more = replace(experiment.source, episodes=1, n_practice=experiment.source.n_practice + option.n_random)
        data = Dataset([e for e in more.load(seed) if e.metadata[DATASET_NAME] == "prior"])
    if option.mirrored:
        data = data.map(mirrored)
    method = option.method
    if option.rewarded:
        reward = TrackingReward(data.select(expert_episodes(data)))
        method = replace(method, transforms=(reward, *method.transforms))
    env = make(experiment.env, ROWS, TRUSTED)
    actor = fit_method(method, data, seed, env=env).actor
    new = replace(experiment.source, episodes=episodes, n_practice=1).load(seed, 300_000).select(range(episodes))
    rollouts = rollout(DemonstratedActor(actor, new, SHOW), env, episodes, starts)
    errors = [float(distances(new[int(e.steps[NUMBER][0, 0])], e).mean()) for e in rollouts]
    return {"success": [float(error < NEAR) for error in errors], "log error": np.log(errors).tolist()}


def mirrored(episode: Episode) -> Episode:
    """A drawing as it looks in a mirror. Practice stays as it is."""
    if episode.metadata[DATASET_NAME] != "task":
        return episode
    return episode.replace({STATE: episode.steps[STATE] * MIRROR})


TABLE = Experiment(Drawings(), measure=drawn_again, first_seed=5210, episodes=200,
                   levels={"with actions": 0.7, "steering": 0.5}, arms={
    "steering": Drawn(practicing()),
    "own commands": Drawn(practicing(steering=0.0)),
    "five rounds": Drawn(practicing(5)),
    "BCO": Drawn(practicing(learner=BehaviorCloningFromObservation(*SIZES))),
    "rewards": Drawn(tracking(), rewarded=True),
    "random actions": Drawn(cloning("prior"), n_random=20 * N_ROUNDS),
    "with actions": Drawn(cloning("task")),
    "mirrored": Drawn(practicing(), mirrored=True)})
